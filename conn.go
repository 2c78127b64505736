package grace

import (
	"io"
	"net"
	"sync"
	"time"
)

// A TCPConn is what the listeners of [Upgrader.Listen] accept for tcp: a
// [net.TCPConn] that its listener keeps track of. All methods of net.TCPConn
// are there, sendfile and splice among them; [TCPConn.NetConn] gives it itself.
type TCPConn struct {
	*net.TCPConn
	track
}

// A UnixConn is what the listeners of [Upgrader.Listen] accept for unix and
// unixpacket; see [TCPConn].
type UnixConn struct {
	*net.UnixConn
	track
}

// tracked puts the connection c, accepted by l, under l's eyes.
func tracked(c net.Conn, l *listener) net.Conn {
	switch c := c.(type) {
	case *net.TCPConn:
		t := &TCPConn{c, track{l: l, inner: c}}
		l.live.add(&t.track)
		return t
	case *net.UnixConn:
		t := &UnixConn{c, track{l: l, inner: c}}
		l.live.add(&t.track)
		return t
	}
	return c // not reached: a listener of ours accepts nothing else
}

// Read is [net.TCPConn.Read].
func (c *TCPConn) Read(p []byte) (int, error) { return c.read(p) }

// WriteTo is [net.TCPConn.WriteTo].
func (c *TCPConn) WriteTo(w io.Writer) (int64, error) { c.bypass(); return c.TCPConn.WriteTo(w) }

// SetDeadline is [net.TCPConn.SetDeadline].
func (c *TCPConn) SetDeadline(t time.Time) error {
	return firstError(c.setReadDeadline(t), c.TCPConn.SetWriteDeadline(t))
}

// SetReadDeadline is [net.TCPConn.SetReadDeadline].
func (c *TCPConn) SetReadDeadline(t time.Time) error { return c.setReadDeadline(t) }

// Close is [net.TCPConn.Close].
func (c *TCPConn) Close() error { c.gone(); return c.TCPConn.Close() }

// NetConn gives the net.TCPConn. Reading, closing or setting deadlines on it
// passes this package by.
func (c *TCPConn) NetConn() net.Conn { return c.TCPConn }

// Read is [net.UnixConn.Read].
func (c *UnixConn) Read(p []byte) (int, error) { return c.read(p) }

// SetDeadline is [net.UnixConn.SetDeadline].
func (c *UnixConn) SetDeadline(t time.Time) error {
	return firstError(c.setReadDeadline(t), c.UnixConn.SetWriteDeadline(t))
}

// SetReadDeadline is [net.UnixConn.SetReadDeadline].
func (c *UnixConn) SetReadDeadline(t time.Time) error { return c.setReadDeadline(t) }

// Close is [net.UnixConn.Close].
func (c *UnixConn) Close() error { c.gone(); return c.UnixConn.Close() }

// NetConn gives the net.UnixConn; see [TCPConn.NetConn].
func (c *UnixConn) NetConn() net.Conn { return c.UnixConn }

func firstError(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

// A phase is what the server says of a connection.
type phase uint8

const (
	phaseNew      phase = iota // accepted; no request yet
	phaseBusy                  // a request is read or answered
	phaseIdle                  // answered; the next request may come
	phaseHTTP2                 // any number of requests at once
	phaseHijacked              // not the server's any more
)

// A track is what a listener knows of one connection.
type track struct {
	l     *listener
	inner net.Conn

	mu     sync.Mutex
	phase  phase
	begun  bool          // bytes were read since it was accepted, or became idle
	capped bool          // the read deadline is not want, but the idle grace's
	closed bool          // Close was called
	grace  time.Duration // how long it may be idle; 0: as long as the server likes
	want   time.Time     // the read deadline that the server has set
}

// trackOf finds the track under c, if it is ours and nobody but TLS wrapped it.
func trackOf(c net.Conn) *track {
	for {
		switch v := c.(type) {
		case *TCPConn:
			return &v.track
		case *UnixConn:
			return &v.track
		case interface{ NetConn() net.Conn }:
			c = v.NetConn()
		default:
			return nil
		}
	}
}

// read is Read on the inner connection.
func (t *track) read(p []byte) (int, error) {
	n, err := t.inner.Read(p)
	if n > 0 {
		t.mu.Lock()
		t.begun = true
		t.uncap()
		t.mu.Unlock()
	}
	return n, err
}

// bypass: bytes are read without us from now on.
func (t *track) bypass() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.begun = true
	t.uncap()
}

func (t *track) setReadDeadline(d time.Time) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.want = d
	t.capped = false
	if t.mayCap() {
		return t.cap()
	}
	return t.inner.SetReadDeadline(d)
}

// mayCap: it is between two requests, and the process wants to end.
func (t *track) mayCap() bool {
	return t.grace > 0 && !t.begun && (t.phase == phaseIdle || t.phase == phaseNew)
}

// cap lets a Read wait for the idle grace at most.
func (t *track) cap() error {
	end := time.Now().Add(t.grace)
	if !t.want.IsZero() && t.want.Before(end) {
		end = t.want
	}
	t.capped = true
	return t.inner.SetReadDeadline(end)
}

// uncap gives the server its own deadline back: a request has begun.
func (t *track) uncap() {
	if t.capped {
		t.capped = false
		t.inner.SetReadDeadline(t.want)
	}
}

// setPhase is what the server tells.
func (t *track) setPhase(p phase) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.phase == phaseHTTP2 && p != phaseHijacked {
		return // net/http calls HTTP/2 connections idle as well
	}
	t.phase = p
	if p == phaseIdle {
		t.begun = false
		return // the server sets its deadline next
	}
	t.uncap()
}

// finish says how long it may be idle from now on; 0 takes that back.
func (t *track) finish(grace time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.grace = grace
	if t.mayCap() {
		t.cap()
	} else {
		t.uncap()
	}
}

// gone: the connection is closed.
func (t *track) gone() {
	t.mu.Lock()
	was, hijacked := t.closed, t.phase == phaseHijacked
	t.closed = true
	t.mu.Unlock()
	if !was {
		t.l.live.remove(t, hijacked)
	}
}

// live are the connections of a listener that are open, hijacked ones too. The
// key is what RemoteAddr returns: a pointer of the connection's own, which most
// wrappers hand through, so that a wrapped connection is found by it.
type live struct {
	mu       sync.Mutex
	conns    map[net.Addr]*track
	hijacked int      // of conns
	watchers []func() // called when one is gone, or hijacked
}

func (s *live) add(t *track) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns == nil {
		s.conns = map[net.Addr]*track{}
	}
	s.conns[t.inner.RemoteAddr()] = t
}

func (s *live) find(c net.Conn) *track {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conns[c.RemoteAddr()]
}

func (s *live) remove(t *track, hijacked bool) {
	s.mu.Lock()
	delete(s.conns, t.inner.RemoteAddr())
	if hijacked {
		s.hijacked--
	}
	watchers := s.watchers
	s.mu.Unlock()
	for _, f := range watchers {
		f()
	}
}

// hijack counts one of the connections as hijacked.
func (s *live) hijack() {
	s.mu.Lock()
	s.hijacked++
	watchers := s.watchers
	s.mu.Unlock()
	for _, f := range watchers {
		f()
	}
}

func (s *live) count(hijacked bool) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if hijacked {
		return len(s.conns)
	}
	return len(s.conns) - s.hijacked
}

// watch lets f be called when a connection is gone.
func (s *live) watch(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watchers = append(s.watchers, f)
}

func (s *live) all() []*track {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*track, 0, len(s.conns))
	for _, t := range s.conns {
		all = append(all, t)
	}
	return all
}
