//go:build unix

package grace

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"time"

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

func fileID(path string) (dev, ino uint64, err error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return 0, 0, err
	}
	return uint64(st.Dev), uint64(st.Ino), nil
}

// openPath opens a unix socket. If its path is taken and nobody answers there, a
// crash has left it behind and it is removed. The directory is locked from
// before the bind until it answers: of two that start at once only one removes
// and binds, and the other finds somebody who answers.
func openPath[T any](path, network string, open func() (T, error)) (T, error) {
	var none T
	dir, lockErr := os.Open(filepath.Dir(path))
	if lockErr == nil {
		defer dir.Close()
		lockErr = lockFor(dir, 5*time.Second)
	}
	s, inUse := open()
	if !errors.Is(inUse, unix.EADDRINUSE) {
		return s, inUse
	}
	if lockErr != nil {
		return none, fmt.Errorf("%w (and its directory can't be locked to see whether it is stale: %w)", inUse, lockErr)
	}
	fi, err := os.Lstat(path)
	if err == nil && fi.Mode().Type() != os.ModeSocket {
		return none, fmt.Errorf("%w: %s is not a socket; remove it, or use another path", inUse, path)
	}
	if err == nil {
		err = findStale(path, network)
	}
	if err == nil {
		err = os.Remove(path)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return none, fmt.Errorf("%w: %w", inUse, err)
	}
	return open()
}

// findStale gives no error if nobody answers on the path.
func findStale(path, network string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	c, err := (&net.Dialer{}).DialContext(ctx, network, path)
	switch {
	case err == nil:
		defer c.Close()
		return fmt.Errorf("%w%s; stop it, or use another path", ErrAddrInUse, peerName(c))
	case errors.Is(err, unix.ECONNREFUSED):
		return nil
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EPROTOTYPE): // its queue is full; another kind of socket
		return fmt.Errorf("%w; stop it, or use another path", ErrAddrInUse)
	}
	return fmt.Errorf("whether somebody answers there can't be told: %w", err)
}

// sayWho makes this process the one that clients of an inherited unix socket
// see as their peer: listen(2) writes down who has called it last.
func sayWho(sock *socket) {
	if hasPath(sock.Network, sock.Addr) {
		sock.control(func(fd uintptr) { unix.Listen(int(fd), -1) }) // the longest queue, as net.Listen
	}
}

// lockFor takes the exclusive flock(2) of f, or gives up after d.
func lockFor(f *os.File, d time.Duration) error {
	end := time.Now().Add(d)
	for wait := time.Millisecond; ; wait *= 2 {
		err := tryLock(f)
		if err == nil || !errors.Is(err, errLocked) || time.Now().After(end) {
			return err
		}
		time.Sleep(min(wait, 50*time.Millisecond))
	}
}

var errLocked error = unix.EWOULDBLOCK

// readable says whether an Accept on the socket would not block.
func readable(sock *socket) bool {
	ready := false
	sock.control(func(fd uintptr) { ready = readableFD(int(fd)) })
	return ready
}

func readableFD(fd int) bool {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(p, 0)
		if err != unix.EINTR {
			return n > 0 && p[0].Revents&unix.POLLIN != 0
		}
	}
}
