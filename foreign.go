package grace

import (
	"net"
	"net/http"
	"reflect"
	"time"
)

// foreignState keeps a connection that we know nothing of: none of our listeners
// has accepted it, or its wrapper hides that. While the process ends it may be
// idle for the idle grace.
func (s *httpServer) foreignState(c net.Conn, state http.ConnState) {
	if !reflect.TypeOf(c).Comparable() {
		return // can't be told from others
	}
	s.mu.Lock()
	if state == http.StateClosed || state == http.StateHijacked {
		delete(s.foreign, c)
	} else {
		s.foreign[c] = waitsForRequest(state)
	}
	s.mu.Unlock()
	s.conns.check()
	if waitsForRequest(state) && s.ends() {
		s.endIdleForeign(c)
	}
}

// waitsForRequest: of a connection that nothing else is known of, a part of the
// header may be there.
func waitsForRequest(state http.ConnState) bool {
	return state == http.StateIdle || state == http.StateNew
}

// endIdleForeign ends the connection if it is idle still when the grace is over.
func (s *httpServer) endIdleForeign(c net.Conn) {
	time.AfterFunc(s.u.opt.idleGrace, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.foreign[c] && s.ends() {
			c.SetReadDeadline(longAgo)
		}
	})
}

func (s *httpServer) endAllIdleForeign() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c, idle := range s.foreign {
		if idle {
			s.endIdleForeign(c)
		}
	}
}

func (s *httpServer) foreigners() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.foreign)
}
