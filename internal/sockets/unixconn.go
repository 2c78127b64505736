package sockets

import (
	"math"
	"net"
	"time"
)

// A UnixConn is what the listeners of Upgrader.Listen accept for unix and
// unixpacket; see TCPConn.
type UnixConn struct {
	*net.UnixConn
	Track Track
}

// Read is [net.UnixConn.Read].
func (c *UnixConn) Read(p []byte) (int, error) { return c.Track.read(c.Track.Inner, p) }

// Write is [net.UnixConn.Write].
func (c *UnixConn) Write(p []byte) (int, error) {
	if c.Track.muted {
		return c.Track.swallow(p)
	}
	return c.UnixConn.Write(p)
}

// SetDeadline is [net.UnixConn.SetDeadline].
func (c *UnixConn) SetDeadline(t time.Time) error {
	return firstError(c.Track.setReadDeadline(t), c.UnixConn.SetWriteDeadline(t))
}

// SetReadDeadline is [net.UnixConn.SetReadDeadline].
func (c *UnixConn) SetReadDeadline(t time.Time) error { return c.Track.setReadDeadline(t) }

// Close is [net.UnixConn.Close].
func (c *UnixConn) Close() error { return c.Track.close() }

// NetConn gives the net.UnixConn; see TCPConn.NetConn.
func (c *UnixConn) NetConn() net.Conn { return c.UnixConn }

// ReadFrom is [net.UnixConn.ReadFrom], and like Read in all else.
func (c *UnixConn) ReadFrom(p []byte) (n int, addr net.Addr, err error) {
	n, unread, err := c.Track.readBy(p, func() (m int, err error) { m, addr, err = c.UnixConn.ReadFrom(p); return m, err })
	if peer := c.peer(); unread && peer != nil {
		addr = peer
	}
	return n, addr, err
}

// ReadFromUnix is [net.UnixConn.ReadFromUnix], and like Read in all else.
func (c *UnixConn) ReadFromUnix(p []byte) (n int, addr *net.UnixAddr, err error) {
	n, unread, err := c.Track.readBy(p, func() (m int, err error) { m, addr, err = c.UnixConn.ReadFromUnix(p); return m, err })
	if unread {
		addr = c.peer()
	}
	return n, addr, err
}

// ReadMsgUnix is [net.UnixConn.ReadMsgUnix], and like Read in all else.
func (c *UnixConn) ReadMsgUnix(p, oob []byte) (n, oobn, flags int, addr *net.UnixAddr, err error) {
	n, unread, err := c.Track.readBy(p, func() (m int, err error) {
		m, oobn, flags, addr, err = c.UnixConn.ReadMsgUnix(p, oob)
		return m, err
	})
	if unread {
		addr = c.peer()
	}
	return n, oobn, flags, addr, err
}

// peer is the address that these reads return: nil if the other end has no name.
func (c *UnixConn) peer() *net.UnixAddr {
	addr, ok := c.RemoteAddr().(*net.UnixAddr)
	if !ok || addr.Name == "" || addr.Name == "@" { // the second on Linux
		return nil
	}
	return addr
}

// readBy is read for the other ways to read; once reads one time. It waits, moves
// and ends like Read. unread reports whether the bytes are some that came along
// with the connection.
func (t *Track) readBy(p []byte, once func() (int, error)) (n int, unread bool, err error) {
	size := int32(max(1, min(len(p), math.MaxInt32))) // without p it waits for descriptors
	for {
		t.mu.Lock()
		if t.phase != PhaseOther { // net/http does not read like this
			t.progress = progressBegun
			t.uncap()
		}
		unread = t.life != lifeMoving && len(t.unread) > 0
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
