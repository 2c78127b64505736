package sockets

import (
	"syscall"

	"github.com/julofinance/grace/v3/internal/gate"
)

// SyscallConn is [net.UDPConn.SyscallConn]; its Read waits as reads do.
func (c *UDPConn) SyscallConn() (syscall.RawConn, error) { return c.raw() }

// SyscallConn is [net.UnixConn.SyscallConn]; its Read waits as reads do.
func (c *UnixgramConn) SyscallConn() (syscall.RawConn, error) { return c.raw() }

// A gatedRaw is a RawConn whose Read waits at the gate: a program that reads many
// packets at a time reads there, and two processes must not read one socket. It
// works on the present socket.
type gatedRaw struct {
	gate *gate.Gate
	now  func() (syscall.RawConn, error)
}

func (p *packet[T, P]) raw() (syscall.RawConn, error) {
	r := gatedRaw{p.Gate, func() (syscall.RawConn, error) { return p.inner().SyscallConn() }}
	_, err := r.now() // an error if the socket is closed
	return r, err
}

func (r gatedRaw) Read(f func(fd uintptr) (done bool)) error {
	return r.gate.Pass(func() error {
		raw, err := r.now()
		if err != nil {
			return err
		}
		return raw.Read(f)
	})
}

func (r gatedRaw) Write(f func(fd uintptr) (done bool)) error {
	raw, err := r.now()
	if err != nil {
		return err
	}
	return raw.Write(f)
}

func (r gatedRaw) Control(f func(fd uintptr)) error {
	raw, err := r.now()
	if err != nil {
		return err
	}
	return raw.Control(f)
}
