package sockets

import (
	"net"
	"os"
	"time"
)

// A MemConn is a connection in memory, tracked like one of a listener. It is used
// to watch how a server behaves.
type MemConn struct {
	net.Conn // the pipe's end, below the track
	Track    Track
	onClose  func(leaving bool)
}

// NewMemConn returns the connection that a server gets, and the client's end.
func NewMemConn(onRead func(n int), onClose func(leaving bool)) (c *MemConn, client net.Conn) {
	client, inner := net.Pipe()
	l := &Listener{expired: &net.OpError{Op: "read", Net: "pipe", Err: os.ErrDeadlineExceeded}}
	c = &MemConn{Conn: inner, onClose: onClose}
	c.Track.begin(memEnd{inner, onRead}, l, nil, nil, nil)
	return c, client
}

func (c *MemConn) Read(p []byte) (int, error)        { return c.Track.read(c.Track.Inner, p) }
func (c *MemConn) SetReadDeadline(t time.Time) error { return c.Track.setReadDeadline(t) }

func (c *MemConn) SetWriteDeadline(t time.Time) error { return c.Track.setWriteDeadline(t) }

func (c *MemConn) SetDeadline(t time.Time) error {
	return firstError(c.Track.setReadDeadline(t), c.Track.setWriteDeadline(t))
}

func (c *MemConn) Write(p []byte) (int, error) {
	if c.Track.muted {
		return c.Track.swallow(p)
	}
	return c.Conn.Write(p)
}

// Close tells onClose whether the connection would have been moved.
func (c *MemConn) Close() error {
	c.Track.mu.Lock()
	was := c.Track.life
	if c.Track.muted {
		c.Track.endPlay()
	}
	leaving := was == lifeLeaving || was == lifeMoving
	if c.Track.life = lifeClosed; leaving {
		c.Track.life = lifeMoving
	}
	c.Track.mu.Unlock()
	if !was.isOver() {
		c.onClose(leaving)
	}
	if leaving {
		return nil
	}
	return c.Conn.Close()
}

func (c *MemConn) IsLeaving() bool {
	c.Track.mu.Lock()
	defer c.Track.mu.Unlock()
	return c.Track.deadline.has(deadlineWakes) || c.Track.life == lifeLeaving || c.Track.life == lifeMoving
}

// memEnd reports each Read.
type memEnd struct {
	net.Conn
	onRead func(n int)
}

func (c memEnd) Read(p []byte) (int, error) {
	c.onRead(len(p))
	return c.Conn.Read(p)
}

// MoveOn returns the connection that another server gets when c, which its server
// has closed, has moved: only what the message of a move has room for goes along.
func (c *MemConn) MoveOn(onClose func(leaving bool)) (*MemConn, error) {
	c.Track.mu.Lock()
	p := c.Track.past()
	c.Track.mu.Unlock()
	batch, err := decodeConns(EncodeConns([]*Moving{{past: p}}).Payload)
	if err != nil {
		return nil, err
	}
	next := &MemConn{Conn: c.Conn, onClose: onClose}
	c.Track.Inner.SetDeadline(time.Time{})
	next.Track.begin(c.Track.Inner, c.Track.Listener, nil, nil, nil)
	next.Track.come(batch[0].past)
	return next, nil
}
