package sockets

import (
	"io"
	"net"
	"os"
	"syscall"
	"time"
)

// A TCPConn is what the listeners of Upgrader.Listen accept for tcp: a
// [net.TCPConn] that its listener keeps track of. It has all methods of
// net.TCPConn, sendfile and splice among them. TCPConn.NetConn returns the
// net.TCPConn itself, with the deadlines that were set; take it from there, not
// from the field.
type TCPConn struct {
	*net.TCPConn
	Track Track
}

// Read is [net.TCPConn.Read].
func (c *TCPConn) Read(p []byte) (int, error) {
	if c.Track.below.Load() != noTLS {
		return c.readBelow(p)
	}
	return c.Track.read(c.Track.Inner, p)
}

// Write is [net.TCPConn.Write].
func (c *TCPConn) Write(p []byte) (int, error) {
	if c.Track.muted || c.Track.below.Load() != noTLS {
		return c.writeBelow(p)
	}
	return c.TCPConn.Write(p)
}

// WriteTo is [net.TCPConn.WriteTo].
func (c *TCPConn) WriteTo(w io.Writer) (int64, error) {
	first, err := c.Track.bypass(w)
	if err != nil {
		return first, err
	}
	n, err := c.TCPConn.WriteTo(w)
	return first + n, err
}

// SetDeadline is [net.TCPConn.SetDeadline].
func (c *TCPConn) SetDeadline(t time.Time) error {
	return firstError(c.Track.setReadDeadline(t), c.Track.setWriteDeadline(t))
}

// SetReadDeadline is [net.TCPConn.SetReadDeadline].
func (c *TCPConn) SetReadDeadline(t time.Time) error { return c.Track.setReadDeadline(t) }

// SetWriteDeadline is [net.TCPConn.SetWriteDeadline].
func (c *TCPConn) SetWriteDeadline(t time.Time) error { return c.Track.setWriteDeadline(t) }

// Close is [net.TCPConn.Close].
func (c *TCPConn) Close() error { return c.Track.close() }

// NetConn returns the net.TCPConn. This package does not see it if the program
// reads from that, closes it or sets deadlines on it.
func (c *TCPConn) NetConn() net.Conn { c.Track.expose(); return c.TCPConn }

// SyscallConn is [net.TCPConn.SyscallConn].
func (c *TCPConn) SyscallConn() (syscall.RawConn, error) {
	c.Track.expose()
	return c.TCPConn.SyscallConn()
}

// File is [net.TCPConn.File].
func (c *TCPConn) File() (*os.File, error) { c.Track.customize(); return c.TCPConn.File() }

// SetNoDelay is [net.TCPConn.SetNoDelay].
func (c *TCPConn) SetNoDelay(noDelay bool) error {
	c.Track.customize()
	return c.TCPConn.SetNoDelay(noDelay)
}

// SetKeepAlive is [net.TCPConn.SetKeepAlive].
func (c *TCPConn) SetKeepAlive(keepalive bool) error {
	c.Track.customize()
	return c.TCPConn.SetKeepAlive(keepalive)
}

// SetKeepAlivePeriod is [net.TCPConn.SetKeepAlivePeriod].
func (c *TCPConn) SetKeepAlivePeriod(d time.Duration) error {
	c.Track.customize()
	return c.TCPConn.SetKeepAlivePeriod(d)
}

// SetKeepAliveConfig is [net.TCPConn.SetKeepAliveConfig].
func (c *TCPConn) SetKeepAliveConfig(config net.KeepAliveConfig) error {
	c.Track.customize()
	return c.TCPConn.SetKeepAliveConfig(config)
}

func firstError(a, b error) error {
	if a != nil {
		return a
	}
	return b
}
