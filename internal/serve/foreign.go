package serve

import (
	"net"
	"net/http"
	"reflect"
	"time"

	"github.com/julofinance/grace/v3/internal/gate"
)

// A foreigner is a connection that this package has no track of: none of our
// listeners has accepted it, or its wrapper hides that.
type foreigner struct {
	state http.ConnState // New, Active or Idle
	since time.Time
	http2 bool
	// bounded is true if we have set its read deadline to one in the past. The one
	// that the server has set is not known, but can be computed: see ownDeadline.
	bounded bool
}

// waits reports whether it waits for a request. A part of the header may be there
// already, which can't be seen from outside.
func (f *foreigner) waits() bool { return f.state == http.StateIdle || f.state == http.StateNew }

// foreignState keeps a foreigner. While the process ends it may be idle for the
// idle grace.
func (s *httpServer) foreignState(c net.Conn, state http.ConnState) {
	if !reflect.TypeOf(c).Comparable() {
		return // can't be told from others
	}
	s.mu.Lock()
	f := s.foreign[c]
	switch {
	case state == http.StateClosed || state == http.StateHijacked:
		delete(s.foreign, c)
	case f == nil:
		f = &foreigner{state: state, since: time.Now()}
		s.foreign[c] = f
	default:
		if f.bounded { // the request came just before the end
			s.unbound(c, f, state)
		}
		f.state, f.since = state, time.Now()
	}
	waits := f != nil && f.waits()
	s.mu.Unlock()
	s.conns.check()
	if waits && s.ends() {
		s.endIdleForeign(c)
	}
}

// endIdleForeign ends the connection if it is idle still when the grace is over.
// After that it looks again: the server sets its deadline after it has reported
// the connection as idle, and may undo ours.
func (s *httpServer) endIdleForeign(c net.Conn) { s.endIdleForeignIn(s.host.IdleGrace, c) }

func (s *httpServer) endIdleForeignIn(wait time.Duration, c net.Conn) {
	d := s.draining.Load()
	time.AfterFunc(wait, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		f := s.foreign[c]
		if f == nil || !f.waits() || !s.drainsBy(d) {
			return
		}
		if time.Since(f.since) >= s.host.IdleGrace { // else it was idle before, and is again
			f.bounded = true
			c.SetReadDeadline(gate.LongAgo)
		}
		s.endIdleForeignIn(max(wait, 10*time.Millisecond), c)
	})
}

func (s *httpServer) endAllIdleForeign() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c, f := range s.foreign {
		if f.waits() {
			s.endIdleForeign(c)
		}
	}
}

// unbound sets the server's own deadline again, for a connection that goes on in
// this state. s.mu is held.
func (s *httpServer) unbound(c net.Conn, f *foreigner, state http.ConnState) {
	f.bounded = false
	c.SetReadDeadline(ownDeadline(s.template, f, state))
}

// unboundForeign does that for all that are left when a drain is called off. s.mu
// is held.
func (s *httpServer) unboundForeign() {
	for c, f := range s.foreign {
		if f.bounded {
			s.unbound(c, f, f.state)
		}
	}
}

// ownDeadline is the read deadline that net/http has set for a connection that
// was waiting, and is in this state now. While it waits, the deadline counts from
// the moment at which it has begun to. For a request it counts from the first
// byte, which for a connection that was idle came just now.
func ownDeadline(srv *http.Server, f *foreigner, now http.ConnState) time.Time {
	var limit time.Duration
	since := f.since
	switch {
	case now == http.StateIdle:
		if limit = srv.IdleTimeout; limit == 0 {
			limit = srv.ReadTimeout
		}
	case now == http.StateNew:
		if limit = srv.ReadHeaderTimeout; limit == 0 {
			limit = srv.ReadTimeout
		}
	default:
		limit = srv.ReadTimeout
		if f.state == http.StateIdle {
			since = time.Now()
		}
	}
	if limit <= 0 || f.http2 { // HTTP/2 connections have none
		return time.Time{}
	}
	return since.Add(limit)
}

// foreignHTTP2 notes that the connection is one of HTTP/2, if it is a foreigner.
func (s *httpServer) foreignHTTP2(c net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !reflect.TypeOf(c).Comparable() {
		return
	}
	if f := s.foreign[c]; f != nil {
		f.http2 = true
	}
}

func (s *httpServer) foreigners() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.foreign)
}
