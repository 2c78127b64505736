//go:build unix

package fd

import (
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// The functions below make a descriptor a value of package net or os, and own it from then
// on, also when they fail. It is expected to be non-blocking, and stays so at every moment:
// another process may be in an Accept on it.

// NewListener makes n a listener.
func NewListener(n int) (Listener, error) {
	l, err := made(n, net.FileListener)
	if err != nil {
		return nil, err
	}
	known, ok := l.(Listener)
	if !ok {
		l.Close()
		return nil, fmt.Errorf("a %T can't be handed over", l)
	}
	return known, nil
}

// NewPacketConn makes n a packet conn.
func NewPacketConn(n int) (net.PacketConn, error) {
	f := os.NewFile(uintptr(n), "inherited")
	defer f.Close()
	return net.FilePacketConn(f)
}

// NewConn makes n a connection. If that is TCP, net.FileConn sets TCP_NODELAY and the
// keep-alives as for a new connection.
func NewConn(n int) (net.Conn, error) { return made(n, net.FileConn) }

// NewUnixConn makes n a connection of a unix socket.
func NewUnixConn(n int) (*net.UnixConn, error) {
	f := os.NewFile(uintptr(n), "unix socket")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	uc, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("descriptor %d is a %s socket, not a unix socket", n, c.LocalAddr().Network())
	}
	return uc, nil
}

// NewFile makes n a file. It is nil if n is no number of a descriptor.
func NewFile(n int, name string) *os.File { return os.NewFile(uintptr(n), name) }

// made returns what f makes of n, and closes n: package net makes a duplicate.
func made[T any](n int, f func(*os.File) (T, error)) (v T, err error) {
	defer unix.Close(n)
	err = withFile(n, func(file *os.File) (err error) { v, err = f(file); return err })
	return v, err
}
