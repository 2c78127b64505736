//go:build unix

package sockets

import (
	"net"
	"net/netip"
	"syscall"

	"github.com/julofinance/grace/v3/internal/fd"
	"github.com/julofinance/grace/v3/internal/manifest"
	"golang.org/x/sys/unix"
)

// describe returns the manifest's entry for a socket that was just opened.
func describe(k manifest.Kind, network, addr string, s any) manifest.Entry {
	e := manifest.Entry{Kind: k, Network: network, Addr: addr}
	switch s := s.(type) {
	case net.Listener:
		e.Bound = s.Addr().String()
	case net.PacketConn:
		e.Bound = s.LocalAddr().String()
	}
	if hasPath(network, addr) {
		if dev, ino, err := fileID(addr); err == nil {
			e.Path, e.Dev, e.Ino = Absolute(addr), dev, ino
		}
	}
	if ap, err := netip.ParseAddrPort(e.Bound); err == nil && ap.Addr().Is6() && !ap.Addr().Is4In6() {
		if sc, ok := s.(syscall.Conn); ok {
			if raw, err := sc.SyscallConn(); err == nil {
				raw.Control(func(n uintptr) {
					v, err := unix.GetsockoptInt(int(n), unix.IPPROTO_IPV6, unix.IPV6_V6ONLY)
					e.V6Only = err == nil && v == 1
				})
			}
		}
	}
	return e
}

// sayWho makes this process the one that clients of an inherited unix socket see
// as their peer: that is the process that has called listen(2) last.
func sayWho(sock *Socket) {
	if hasPath(sock.Network, sock.Addr) {
		sock.listenNow()
	}
}

// readable reports whether something waits in the socket's queue. A unix socket that was
// shut down is readable for poll(2), though its queue is empty.
func readable(sock *Socket) bool {
	ready := false
	sock.Control(func(n uintptr) {
		r := fd.Poll(int(n), unix.POLLIN|fd.ShutDown)
		ready = r&unix.POLLIN != 0 && r&fd.ShutDown == 0
	})
	return ready
}

// isShutDown reports whether a packet conn receives nothing any more. Any process that
// has it may end that with shutdown(2), for all of them.
func (sock *Socket) isShutDown() bool {
	down := false
	sock.Control(func(n uintptr) { down = fd.Poll(int(n), fd.ShutDown)&fd.ShutDown != 0 })
	return down
}

// listens reports whether the socket still listens. Any process that has it may end that
// with shutdown(2), for all of them.
func (sock *Socket) listens() bool {
	ok := false
	sock.Control(func(n uintptr) {
		on, err := unix.GetsockoptInt(int(n), unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
		// For a unix socket SO_ACCEPTCONN stays 1 after shutdown(2).
		ok = (err != nil || on != 0) && fd.Poll(int(n), fd.ShutDown)&fd.ShutDown == 0
	})
	return ok
}
