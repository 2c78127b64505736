package sockets

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/julofinance/grace/v3/internal/manifest"
)

// Claim takes the inherited socket that was asked for under this very name
// before, or else one that the kernel has bound to the address asked for. A host
// name is resolved in between, which may take its time: only this call waits for
// that.
func (s *Set) Claim(k manifest.Kind, network, addr string) (Inherited, bool) {
	lost := s.lostFiles(k, network, addr)
	if in, ok := s.claimIf(func(in Inherited) bool {
		return in.Kind == k && !slices.Contains(lost, in.Index) && (in.Network == network && in.Addr == addr || network == systemdNetwork && in.Name == addr)
	}); ok || k == manifest.File || k == manifest.Conn || !s.hasUnclaimed(k) {
		return in, ok
	}
	w := want(network, addr)
	if in, ok := s.claimIf(func(in Inherited) bool {
		return in.Kind == k && !slices.Contains(lost, in.Index) && w.is(in.Entry)
	}); ok {
		return in, true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := s.claimMasters(k, network, addr); i >= 0 {
		return s.take(i), true
	}
	return Inherited{}, false
}

// claimIf takes the first that matches. match is called with s.mu held.
func (s *Set) claimIf(match func(Inherited) bool) (Inherited, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, in := range s.unclaimed {
		if match(in) {
			return s.take(i), true
		}
	}
	return Inherited{}, false
}

// lostFiles returns the indexes of unix sockets that this address would be given,
// but which no client finds any more: the program has removed the file before it
// calls Listen, as a program without this library must. The old process serves
// what is queued there.
func (s *Set) lostFiles(k manifest.Kind, network, addr string) (lost []int) {
	if !hasPath(network, addr) {
		return nil
	}
	s.mu.Lock()
	left := slices.Clone(s.unclaimed)
	s.mu.Unlock()
	path := Absolute(addr)
	for _, in := range left {
		if in.Kind != k || in.Master || in.Path == "" || in.Addr != addr && in.Path != path {
			continue
		}
		if sock := (&Socket{Entry: in.Entry}); sock.lost() {
			lost = append(lost, in.Index)
			s.boundAnew(in)
		}
	}
	return lost
}

func (s *Set) boundAnew(in Inherited) {
	s.mu.Lock()
	for i := range s.unclaimed {
		if s.unclaimed[i].Index == in.Index {
			s.unclaimed[i].anew = true
		}
	}
	s.mu.Unlock()
	do := "don't remove it: Listen replaces what a crash has left behind"
	if dir := filepath.Dir(in.Path); isLink(dir) {
		do = "if a link in the path leads elsewhere now, nothing, but remove the former file where it led to before; else don't remove it: Listen replaces what a crash has left behind"
	}
	s.Log.Warn("grace: the path of a unix socket was removed or replaced before Listen; it is bound anew, and the old process serves what is queued in the former one", "path", in.Path, "hint", do)
}

// isLink reports whether a symlink is in the path.
func isLink(path string) bool {
	real, err := filepath.EvalSymlinks(path)
	return err == nil && real != path
}

func (s *Set) hasUnclaimed(k manifest.Kind) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.unclaimed, func(in Inherited) bool { return in.Kind == k })
}

// askedFor notes the name by which the socket was asked for. One that was asked
// for by systemd's name keeps its own too: the next version may ask by that.
func askedFor(e *manifest.Entry, network, addr string) {
	if network != systemdNetwork {
		e.Network, e.Addr = network, addr
	}
}

// take removes the i-th. Most programs ask in the same order as before, so that
// it is the first: then it costs nothing, however many there are. The caller
// calls Made once the socket is among s.all, or can't be. s.mu is held.
func (s *Set) take(i int) Inherited {
	in := s.unclaimed[i]
	s.making = append(s.making, in.Index)
	if i == 0 {
		s.unclaimed = s.unclaimed[1:]
	} else {
		s.unclaimed = slices.Delete(s.unclaimed, i, i+1)
	}
	return in
}

// Made ends what take has begun.
func (s *Set) Made(in Inherited) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.making = slices.DeleteFunc(s.making, func(i int) bool { return i == in.Index })
}

// A wanted is an address that was asked for, resolved.
type wanted struct {
	network, addr string
	port          int          // 0: none that something is bound to
	ips           []netip.Addr // nil: a wildcard
}

// want resolves the address. If it can't be resolved, no socket matches it.
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

// is reports whether opening what is wanted would bind what e is bound to.
func (w wanted) is(e manifest.Entry) bool {
	network := w.network
	family := strings.TrimRight(network, "46")
	if family != strings.TrimRight(e.Network, "46") {
		return false
	}
	if family != "tcp" && family != "udp" {
		return e.Network == network && (e.Bound == w.addr || hasPath(network, w.addr) && e.Path == Absolute(w.addr))
	}
	bound, err := netip.ParseAddrPort(e.Bound)
	if err != nil || w.port == 0 || w.port != int(bound.Port()) {
		return false
	}
	boundIP := bound.Addr().Unmap()
	if w.ips == nil {
		// What net.Listen does with a wildcard: tcp takes both families on one IPv6
		// socket, where the host has IPv6, whichever wildcard is written.
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

func Absolute(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path
}

// claimMasters takes a socket that a master has passed and that is not bound as
// was asked for: in socketmaster mode the next one, whatever the address; else
// the only one with the same port. s.mu is held.
func (s *Set) claimMasters(k manifest.Kind, network, addr string) int {
	found := -1
	for i, in := range s.unclaimed {
		if !in.Master || in.Kind != k {
			continue
		}
		if s.anyAddr {
			return i
		}
		if samePort(in.Entry, network, addr) {
			if found >= 0 {
				return -1
			}
			found = i
		}
	}
	return found
}

func samePort(e manifest.Entry, network, addr string) bool {
	if strings.TrimRight(network, "46") != strings.TrimRight(e.Network, "46") {
		return false
	}
	_, port, err := net.SplitHostPort(addr)
	_, bound, berr := net.SplitHostPort(e.Bound)
	if err != nil || berr != nil {
		return false
	}
	p, err := net.LookupPort(network, port)
	return err == nil && p != 0 && strconv.Itoa(p) == bound
}

// systemdNetwork is the network of names: Listen("systemd", name) returns the
// socket that has this name in systemd.
const systemdNetwork = "systemd"

// noSuchName is the error for a name that no socket of systemd's has.
func (s *Set) noSuchName(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	have := []string{}
	for _, in := range s.unclaimed {
		if in.Name != "" {
			have = append(have, fmt.Sprintf("%s (%s %s)", in.Name, in.Network, in.Bound))
		}
	}
	if len(have) == 0 {
		return fmt.Errorf("grace: listen %s %s: %w: LISTEN_FDNAMES names no socket that is not taken; is this process started by a .socket unit with FileDescriptorName=%s?", systemdNetwork, name, ErrMaster, name)
	}
	return fmt.Errorf("grace: listen %s %s: %w: LISTEN_FDNAMES has only %s", systemdNetwork, name, ErrMaster, strings.Join(have, ", "))
}

// FromMaster adds what a master has passed. With anyAddr its listeners are given
// whatever address is asked for.
func (s *Set) FromMaster(passed []Passed, anyAddr bool) {
	s.anyAddr = anyAddr
	for _, ms := range passed {
		s.unclaimed = append(s.unclaimed, Inherited{Entry: ms.Entry, Index: -1, FD: ms.FD})
	}
}

// Leftover are the sockets that the program has not asked for.
func (s *Set) Leftover() []Inherited {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.unclaimed)
}

// A Passed is a socket that a master has passed.
type Passed struct {
	manifest.Entry     // Kind, Network, Bound, V6Only and, if the master gives one, Name
	FD             int // close-on-exec already
}
