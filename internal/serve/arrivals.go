package serve

import (
	"context"
	"crypto/tls"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/julofinance/grace/v3/internal/sockets"
)

// arrivals are connections that the hooks have been told of, and the server not
// yet.
type arrivals struct {
	n  atomic.Int32 // most servers never have any
	mu sync.Mutex   // guards m
	m  map[net.Conn]*arrival
}

type arrival struct {
	ctx     context.Context // from ConnContext
	settled bool            // what it speaks is known
	ended   bool            // by end, before that was known
}

func (a *arrivals) add(c net.Conn, ctx context.Context) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.m == nil {
		a.m = map[net.Conn]*arrival{}
	}
	a.m[c] = &arrival{ctx: ctx}
	a.n.Add(1)
}

// context returns nil if c is no arrival.
func (a *arrivals) context(c net.Conn) context.Context {
	if a.n.Load() == 0 || !mayArrive(c) {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if v := a.m[c]; v != nil {
		return v.ctx
	}
	return nil
}

// settle notes that what c speaks is known; false if end came first.
func (a *arrivals) settle(c net.Conn) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	v := a.m[c]
	if v != nil {
		v.settled = true
	}
	return v == nil || !v.ended
}

// end notes that c is to be closed, if it is not known yet what it speaks and
// still returns true.
func (a *arrivals) end(c net.Conn, still func() bool) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	v := a.m[c]
	if v == nil || v.settled || !still() {
		return false
	}
	v.ended = true
	return true
}

// remove reports whether c was there.
func (a *arrivals) remove(c net.Conn) bool {
	if a.n.Load() == 0 || !mayArrive(c) {
		return false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	_, ok := a.m[c]
	if ok {
		delete(a.m, c)
		a.n.Add(-1)
	}
	return ok
}

func (a *arrivals) all() (conns []net.Conn) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for c := range a.m {
		conns = append(conns, c)
	}
	return conns
}

// mayArrive reports whether c is of a type that can be an arrival. Others may not
// even be comparable, as the key of a map must be.
func mayArrive(c net.Conn) bool {
	switch c.(type) {
	case *sockets.TCPConn, *sockets.UnixConn, *peekedConn, *tls.Conn:
		return true
	}
	_, ok := c.(handshaker)
	return ok
}

// boundArrival bounds how long c may take, while the process ends, to show what
// it speaks: the idle grace.
//
// This sets no deadline: the door sets its own at any moment, and so may the
// program's hooks, so that the last one set would win. Either end is first, and
// then the connection is closed and not served, also if the drain is called off a
// moment later; or settle is, and then nothing of this is left on it, and the
// bound is that of an idle connection: see finish and endIdleForeign.
func (s *httpServer) boundArrival(c net.Conn) {
	d := s.draining.Load()
	time.AfterFunc(s.host.IdleGrace, func() { s.endArrival(c, d) })
}

func (s *httpServer) endArrival(c net.Conn, d *Drain) {
	if s.arrivals.end(c, func() bool { return s.drainsBy(d) }) {
		c.Close()
	}
}

// drainsBy reports whether d is still the drain by which connections end: one
// that was called off decides nothing in the next.
func (s *httpServer) drainsBy(d *Drain) bool {
	return d != nil && s.draining.Load() == d && !d.cancelled()
}
