package grace

import (
	"context"
	"github.com/julofinance/grace/v3/internal/manifest"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
)

// claim takes the inherited socket that was asked for under this very name
// before, or else one that the kernel has bound to the address asked for. A host
// name is resolved in between, which may take its time: nobody waits for that but
// who asked.
func (s *sockets) claim(k manifest.Kind, network, addr string) (inheritedSocket, bool) {
	lost := s.lostFiles(k, network, addr)
	if in, ok := s.claimIf(func(in inheritedSocket) bool {
		return in.Kind == k && !slices.Contains(lost, in.index) && (in.Network == network && in.Addr == addr || network == systemdNetwork && in.Name == addr)
	}); ok || k == manifest.File || k == manifest.Conn || !s.hasUnclaimed(k) {
		return in, ok
	}
	w := want(network, addr)
	if in, ok := s.claimIf(func(in inheritedSocket) bool {
		return in.Kind == k && !slices.Contains(lost, in.index) && w.is(in.Entry)
	}); ok {
		return in, true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := s.claimMasters(k, network, addr); i >= 0 {
		return s.take(i), true
	}
	return inheritedSocket{}, false
}

// claimIf takes the first that is what is wanted. match is called with s.mu held.
func (s *sockets) claimIf(match func(inheritedSocket) bool) (inheritedSocket, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, in := range s.unclaimed {
		if match(in) {
			return s.take(i), true
		}
	}
	return inheritedSocket{}, false
}

// lostFiles are the indexes of unix sockets that this address would be given, but
// which no client finds any more: the program has removed the file before it calls
// Listen, as it must where nobody does it for it. Old serves what is queued there.
func (s *sockets) lostFiles(k manifest.Kind, network, addr string) (lost []int) {
	if !hasPath(network, addr) {
		return nil
	}
	s.mu.Lock()
	left := slices.Clone(s.unclaimed)
	s.mu.Unlock()
	path := absolute(addr)
	for _, in := range left {
		if in.Kind != k || in.Master || in.Path == "" || in.Addr != addr && in.Path != path {
			continue
		}
		if sock := (&socket{Entry: in.Entry}); sock.lost() {
			lost = append(lost, in.index)
			s.boundAnew(in)
		}
	}
	return lost
}

func (s *sockets) boundAnew(in inheritedSocket) {
	s.mu.Lock()
	for i := range s.unclaimed {
		if s.unclaimed[i].index == in.index {
			s.unclaimed[i].anew = true
		}
	}
	s.mu.Unlock()
	do := "don't remove it: Listen replaces what a crash has left behind"
	if dir := filepath.Dir(in.Path); isLink(dir) {
		do = "if a link in the path leads elsewhere now, nothing, but remove the former file where it led to before; else don't remove it: Listen replaces what a crash has left behind"
	}
	s.log.Warn("grace: the path of a unix socket was removed or replaced before Listen; it is bound anew, and the old process serves what is queued in the former one", "path", in.Path, "do", do)
}

// isLink reports whether a symlink is in the path.
func isLink(path string) bool {
	real, err := filepath.EvalSymlinks(path)
	return err == nil && real != path
}

func (s *sockets) hasUnclaimed(k manifest.Kind) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.unclaimed, func(in inheritedSocket) bool { return in.Kind == k })
}

// askedFor notes by which name the socket was asked for. One that was asked for
// by systemd's name keeps its own too: the next version may ask otherwise.
func askedFor(e *manifest.Entry, network, addr string) {
	if network != systemdNetwork {
		e.Network, e.Addr = network, addr
	}
}

// take removes the i-th. Most programs ask in the order of before, so that it is
// the first: it costs nothing then, however many there are. Who has taken it calls
// made once it is among s.all, or can't be. s.mu is held.
func (s *sockets) take(i int) inheritedSocket {
	in := s.unclaimed[i]
	s.making = append(s.making, in.index)
	if i == 0 {
		s.unclaimed = s.unclaimed[1:]
	} else {
		s.unclaimed = slices.Delete(s.unclaimed, i, i+1)
	}
	return in
}

// made ends what take has begun.
func (s *sockets) made(in inheritedSocket) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.making = slices.DeleteFunc(s.making, func(i int) bool { return i == in.index })
}

// A wanted is an address that was asked for, resolved.
type wanted struct {
	network, addr string
	port          int          // 0: none that something is bound to
	ips           []netip.Addr // nil: a wildcard
}

// want resolves the address. What can't be resolved is bound by nothing.
func want(network, addr string) wanted {
	w := wanted{network: network, addr: addr}
	if !strings.HasPrefix(network, "tcp") && !strings.HasPrefix(network, "udp") {
		return w
	}
	host, service, err := net.SplitHostPort(addr)
	if err != nil {
		return w
	}
	port, err := net.LookupPort(network, service)
	if err != nil || port == 0 {
		return w
	}
	if host != "" && host != "0.0.0.0" && host != "::" {
		w.ips, err = net.DefaultResolver.LookupNetIP(context.Background(), "ip"+strings.TrimLeft(network, "tcpud"), host)
		if err != nil {
			return w
		}
	}
	w.port = port
	return w
}

// is says whether opening what is wanted would bind what e is bound to.
func (w wanted) is(e manifest.Entry) bool {
	network := w.network
	family := strings.TrimRight(network, "46")
	if family != strings.TrimRight(e.Network, "46") {
		return false
	}
	if family != "tcp" && family != "udp" {
		return e.Network == network && (e.Bound == w.addr || hasPath(network, w.addr) && e.Path == absolute(w.addr))
	}
	bound, err := netip.ParseAddrPort(e.Bound)
	if err != nil || w.port == 0 || w.port != int(bound.Port()) {
		return false
	}
	boundIP := bound.Addr().Unmap()
	if w.ips == nil {
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
	return slices.ContainsFunc(w.ips, func(ip netip.Addr) bool { return ip.Unmap() == boundIP })
}

func absolute(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path
}
