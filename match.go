package grace

import (
	"context"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
)

// claim takes the inherited socket that was asked for under this very name
// before, or else one that the kernel has bound to the address asked for.
func (s *sockets) claim(k kind, network, addr string) (inheritedSocket, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, in := range s.unclaimed {
		if in.Kind == k && (in.Network == network && in.Addr == addr || network == systemdNetwork && in.Name == addr) {
			s.take(i)
			return in, true
		}
	}
	if k == kindFile || k == kindConn {
		return inheritedSocket{}, false
	}
	for i, in := range s.unclaimed {
		if in.Kind == k && sameBinding(in.entry, network, addr) {
			s.take(i)
			return in, true
		}
	}
	if i := s.claimMasters(k, network, addr); i >= 0 {
		in := s.unclaimed[i]
		s.take(i)
		return in, true
	}
	return inheritedSocket{}, false
}

// askedFor notes by which name the socket was asked for. One that was asked for
// by systemd's name keeps its own too: the next version may ask otherwise.
func (e *entry) askedFor(network, addr string) {
	if network != systemdNetwork {
		e.Network, e.Addr = network, addr
	}
}

// take removes the i-th. Most programs ask in the order of before, so that it is
// the first: it costs nothing then, however many there are. s.mu is held.
func (s *sockets) take(i int) {
	if i == 0 {
		s.unclaimed = s.unclaimed[1:]
		return
	}
	s.unclaimed = slices.Delete(s.unclaimed, i, i+1)
}

// sameBinding says whether opening network and addr would bind what e is bound to.
func sameBinding(e entry, network, addr string) bool {
	family := strings.TrimRight(network, "46")
	if family != strings.TrimRight(e.Network, "46") {
		return false
	}
	if family != "tcp" && family != "udp" {
		return e.Network == network && (e.Bound == addr || hasPath(network, addr) && e.Path == absolute(addr))
	}
	bound, err := netip.ParseAddrPort(e.Bound)
	if err != nil {
		return false
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	if p, err := net.LookupPort(network, port); err != nil || p == 0 || uint16(p) != bound.Port() {
		return false
	}
	boundIP := bound.Addr().Unmap()
	if host == "" || host == "0.0.0.0" || host == "::" {
		// What net.Listen makes of a wildcard: tcp takes both families on one
		// IPv6 socket, where the host has IPv6, whichever wildcard is written.
		switch {
		case !boundIP.IsUnspecified():
			return false
		case strings.HasSuffix(network, "4"):
			return boundIP.Is4()
		case strings.HasSuffix(network, "6"):
			return boundIP.Is6() && e.V6Only
		case boundIP.Is6():
			return !e.V6Only
		default:
			return strings.TrimRight(e.Network, "4") == e.Network
		}
	}
	ips, err := net.DefaultResolver.LookupNetIP(context.Background(), "ip"+strings.TrimLeft(network, "tcpud"), host)
	if err != nil {
		return false
	}
	for _, ip := range ips {
		if ip.Unmap() == boundIP {
			return true
		}
	}
	return false
}

func absolute(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path
}
