// Package fd works on descriptors that several processes share, in the ways that package
// net does not offer or that would change them for the other processes.
//
// O_NONBLOCK belongs to the open file, not to the descriptor (see fcntl(2)): a process that
// sets a passed socket to blocking, as os.File.Fd may, does so for every process that has
// it. Nothing here does. In this package n is the number of a descriptor.
package fd

import (
	"fmt"
	"net"
	"os"
	"syscall"
	"time"
)

// A Listener is what *net.TCPListener and *net.UnixListener have in common.
type Listener interface {
	net.Listener
	syscall.Conn
	SetDeadline(time.Time) error
	File() (*os.File, error)
}

// Of is the number of c's descriptor, which is valid until c is closed.
func Of(c net.Conn) (int, error) {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return -1, fmt.Errorf("a %T has no descriptor", c)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return -1, err
	}
	number := -1
	err = raw.Control(func(n uintptr) { number = int(n) })
	return number, err
}
