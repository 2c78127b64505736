package grace

import (
	"math"
	"net"
	"time"
)

// A unixConn is what the listeners of [Upgrader.Listen] accept for unix and
// unixpacket; see tcpConn.
type unixConn struct {
	*net.UnixConn
	track
}

// Read is [net.UnixConn.Read].
func (c *unixConn) Read(p []byte) (int, error) { return c.read(p) }

// Write is [net.UnixConn.Write].
func (c *unixConn) Write(p []byte) (int, error) {
	if c.muted {
		return c.swallow(p)
	}
	return c.UnixConn.Write(p)
}

// SetDeadline is [net.UnixConn.SetDeadline].
func (c *unixConn) SetDeadline(t time.Time) error {
	return firstError(c.setReadDeadline(t), c.UnixConn.SetWriteDeadline(t))
}

// SetReadDeadline is [net.UnixConn.SetReadDeadline].
func (c *unixConn) SetReadDeadline(t time.Time) error { return c.setReadDeadline(t) }

// Close is [net.UnixConn.Close].
func (c *unixConn) Close() error { return c.close() }

// NetConn gives the net.UnixConn; see tcpConn.NetConn.
func (c *unixConn) NetConn() net.Conn { return c.UnixConn }

// ReadFrom is [net.UnixConn.ReadFrom], and like Read in all else.
func (c *unixConn) ReadFrom(p []byte) (n int, addr net.Addr, err error) {
	n, unread, err := c.readBy(p, func() (m int, err error) { m, addr, err = c.UnixConn.ReadFrom(p); return m, err })
	if peer := c.peer(); unread && peer != nil {
		addr = peer
	}
	return n, addr, err
}

// ReadFromUnix is [net.UnixConn.ReadFromUnix], and like Read in all else.
func (c *unixConn) ReadFromUnix(p []byte) (n int, addr *net.UnixAddr, err error) {
	n, unread, err := c.readBy(p, func() (m int, err error) { m, addr, err = c.UnixConn.ReadFromUnix(p); return m, err })
	if unread {
		addr = c.peer()
	}
	return n, addr, err
}

// ReadMsgUnix is [net.UnixConn.ReadMsgUnix], and like Read in all else.
func (c *unixConn) ReadMsgUnix(p, oob []byte) (n, oobn, flags int, addr *net.UnixAddr, err error) {
	n, unread, err := c.readBy(p, func() (m int, err error) {
		m, oobn, flags, addr, err = c.UnixConn.ReadMsgUnix(p, oob)
		return m, err
	})
	if unread {
		addr = c.peer()
	}
	return n, oobn, flags, addr, err
}

// peer is the address that these give: nil if the other end has no name.
func (c *unixConn) peer() *net.UnixAddr {
	addr, ok := c.RemoteAddr().(*net.UnixAddr)
	if !ok || addr.Name == "" || addr.Name == "@" { // the second on Linux
		return nil
	}
	return addr
}

// readBy is read for the other ways to read, of which once is one: it waits, moves
// and ends like Read. unread says that bytes were given that came along with the
// connection.
func (t *track) readBy(p []byte, once func() (int, error)) (n int, unread bool, err error) {
	size := int32(max(1, min(len(p), math.MaxInt32))) // without p it waits for descriptors
	for {
		t.mu.Lock()
		if t.phase != phaseOther { // net/http does not read like this
			t.touched, t.begun = true, true
			t.uncap()
		}
		unread = !t.away && len(t.unread) > 0
		if n, ok, err := t.beforeRead(p, size); ok {
			return n, unread, err
		}
		t.mu.Unlock()
		n, err := once()
		t.mu.Lock()
		again, err := t.afterRead(n, size, err)
		t.mu.Unlock()
		if !again {
			return n, false, err
		}
	}
}
