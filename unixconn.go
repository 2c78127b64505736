package grace

import (
	"net"
	"time"
)

// A UnixConn is what the listeners of [Upgrader.Listen] accept for unix and
// unixpacket; see [TCPConn].
type UnixConn struct {
	*net.UnixConn
	track
}

// Read is [net.UnixConn.Read].
func (c *UnixConn) Read(p []byte) (int, error) { return c.read(p) }

// Write is [net.UnixConn.Write].
func (c *UnixConn) Write(p []byte) (int, error) {
	if c.muted {
		return c.swallow(p)
	}
	return c.UnixConn.Write(p)
}

// SetDeadline is [net.UnixConn.SetDeadline].
func (c *UnixConn) SetDeadline(t time.Time) error {
	return firstError(c.setReadDeadline(t), c.UnixConn.SetWriteDeadline(t))
}

// SetReadDeadline is [net.UnixConn.SetReadDeadline].
func (c *UnixConn) SetReadDeadline(t time.Time) error { return c.setReadDeadline(t) }

// Close is [net.UnixConn.Close].
func (c *UnixConn) Close() error { return c.close() }

// NetConn gives the net.UnixConn; see [TCPConn.NetConn].
func (c *UnixConn) NetConn() net.Conn { return c.UnixConn }

// ReadFrom is [net.UnixConn.ReadFrom].
func (c *UnixConn) ReadFrom(p []byte) (int, net.Addr, error) {
	if n, ok, err := c.readUnread(p); ok {
		if addr := c.peer(); addr != nil {
			return n, addr, err
		}
		return n, nil, err
	}
	return c.UnixConn.ReadFrom(p)
}

// ReadFromUnix is [net.UnixConn.ReadFromUnix].
func (c *UnixConn) ReadFromUnix(p []byte) (int, *net.UnixAddr, error) {
	if n, ok, err := c.readUnread(p); ok {
		return n, c.peer(), err
	}
	return c.UnixConn.ReadFromUnix(p)
}

// ReadMsgUnix is [net.UnixConn.ReadMsgUnix].
func (c *UnixConn) ReadMsgUnix(p, oob []byte) (n, oobn, flags int, addr *net.UnixAddr, err error) {
	if n, ok, err := c.readUnread(p); ok {
		return n, 0, 0, c.peer(), err
	}
	return c.UnixConn.ReadMsgUnix(p, oob)
}

// peer is the address that these give: nil if the other end has no name.
func (c *UnixConn) peer() *net.UnixAddr {
	addr, ok := c.RemoteAddr().(*net.UnixAddr)
	if !ok || addr.Name == "" || addr.Name == "@" { // the second on Linux
		return nil
	}
	return addr
}

// readUnread is a read that passes read by: bytes that came along come first.
// Without any, ok is false, and the caller reads from inner.
func (t *track) readUnread(p []byte) (n int, ok bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.away {
		return 0, true, net.ErrClosed
	}
	t.touched, t.begun = true, true
	t.uncap()
	if len(t.unread) == 0 {
		return 0, false, nil
	}
	return t.takeUnread(p), true, nil
}
