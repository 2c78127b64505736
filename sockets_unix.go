//go:build unix

package grace

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// inheritListener makes a listener of fd, which it takes. The descriptor comes
// to us non-blocking, and net leaves such a one as it is: at no moment is it
// blocking, for old neither, which still accepts on it.
func inheritListener(fd int) (acceptor, error) {
	defer unix.Close(fd)
	var l net.Listener
	err := withFile(fd, func(f *os.File) (err error) { l, err = net.FileListener(f); return err })
	if err != nil {
		return nil, err
	}
	a, ok := l.(acceptor)
	if !ok {
		l.Close()
		return nil, fmt.Errorf("a %T can't be handed over", l)
	}
	return a, nil
}

func inheritPacket(fd int) (net.PacketConn, error) {
	f := os.NewFile(uintptr(fd), "inherited")
	defer f.Close()
	return net.FilePacketConn(f)
}

func inheritConn(fd int) (net.Conn, error) {
	f := os.NewFile(uintptr(fd), "inherited")
	defer f.Close()
	return net.FileConn(f)
}

func inheritFile(fd int, name string) *os.File { return os.NewFile(uintptr(fd), name) }

// describe is the manifest's entry for a socket that was just opened.
func describe(k kind, network, addr string, s any) entry {
	e := entry{Kind: k, Network: network, Addr: addr}
	switch s := s.(type) {
	case net.Listener:
		e.Bound = s.Addr().String()
	case net.PacketConn:
		e.Bound = s.LocalAddr().String()
	}
	if hasPath(network, addr) {
		if dev, ino, err := fileID(addr); err == nil {
			e.Path, e.Dev, e.Ino = absolute(addr), dev, ino
		}
	}
	if ap, err := netip.ParseAddrPort(e.Bound); err == nil && ap.Addr().Is6() && !ap.Addr().Is4In6() {
		if sc, ok := s.(syscall.Conn); ok {
			if raw, err := sc.SyscallConn(); err == nil {
				raw.Control(func(fd uintptr) {
					v, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_V6ONLY)
					e.V6Only = err == nil && v == 1
				})
			}
		}
	}
	return e
}

// sayWho makes this process the one that clients of an inherited unix socket
// see as their peer: listen(2) writes down who has called it last.
func sayWho(sock *socket) {
	if hasPath(sock.Network, sock.Addr) {
		sock.listenNow()
	}
}

var errLocked error = unix.EWOULDBLOCK

// readable says whether something waits in the socket's queue. One that was shut
// down has an empty one, and a unix socket is readable all the same.
func readable(sock *socket) bool {
	ready := false
	sock.control(func(fd uintptr) {
		r := pollIn(int(fd), pollHungUp)
		ready = r&unix.POLLIN != 0 && r&(pollHungUp|unix.POLLHUP) == 0
	})
	return ready
}

// isShutDown says whether a packet conn gets nothing any more. Any process that has
// it may end that with shutdown(2), for all of them.
func (sock *socket) isShutDown() bool {
	down := false
	sock.control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd), Events: pollHungUp}}
		for {
			n, err := unix.Poll(p, 0)
			if err != unix.EINTR {
				down = n > 0 && p[0].Revents&(pollHungUp|unix.POLLHUP) != 0
				return
			}
		}
	})
	return down
}

// listens says whether the socket listens still. Any process that has it may end
// that with shutdown(2), for all of them.
func (sock *socket) listens() bool {
	ok := false
	sock.control(func(fd uintptr) {
		on, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
		p := []unix.PollFd{{Fd: int32(fd), Events: pollHungUp}}
		for err == nil {
			if _, err = unix.Poll(p, 0); err != unix.EINTR {
				break
			}
			err = nil
		}
		// That of a unix socket still says that it accepts.
		ok = (err != nil || on != 0) && p[0].Revents&(pollHungUp|unix.POLLHUP) == 0
	})
	return ok
}

func readableFD(fd int) bool { return pollIn(fd, 0)&unix.POLLIN != 0 }

// pollIn is what poll(2) says of fd, asked for POLLIN and more; 0 if it fails.
func pollIn(fd int, more int16) int16 {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN | more}}
	for {
		n, err := unix.Poll(p, 0)
		if err != unix.EINTR {
			if n <= 0 {
				return 0
			}
			return p[0].Revents
		}
	}
}
