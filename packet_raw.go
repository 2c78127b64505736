package grace

import "syscall"

// SyscallConn is [net.UDPConn.SyscallConn]; its Read waits as reads do.
func (c *UDPConn) SyscallConn() (syscall.RawConn, error) { return c.gated(c.UDPConn) }

// SyscallConn is [net.UnixConn.SyscallConn]; its Read waits as reads do.
func (c *UnixgramConn) SyscallConn() (syscall.RawConn, error) { return c.gated(c.UnixConn) }

// A gatedRaw is a RawConn whose Read waits at the gate. Who reads many packets at a
// time reads there, and two processes must not read one socket.
type gatedRaw struct {
	syscall.RawConn
	gate *gate
}

func (p packet) gated(c syscall.Conn) (syscall.RawConn, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	return gatedRaw{raw, p.gate}, nil
}

func (r gatedRaw) Read(f func(fd uintptr) (done bool)) error {
	return r.gate.pass(func() error { return r.RawConn.Read(f) })
}
