package serve

import (
	"net"
	"net/http"
	"reflect"

	"github.com/julofinance/grace/v3/internal/sockets"
)

// seesWrapper is called with each listener of the server.
func (s *httpServer) seesWrapper(ln net.Listener) {
	if _, ours := ln.(*sockets.Listener); !ours {
		s.wraps.Store(true)
	}
}

// onWrapped is called with a new connection that is not ours itself.
func (s *httpServer) onWrapped(c net.Conn) {
	known := reflect.TypeOf(c).Comparable()
	switch {
	case len(s.conns.all()) == 0:
		s.foreignState(c, http.StateNew)
	case known:
		if t := sockets.TrackBelow(c); t != nil {
			s.mu.Lock()
			s.wrapped[c] = t
			s.mu.Unlock()
			t.PlayPrelude()
			s.begin(c, t)
			break
		}
		fallthrough
	default:
		// Its RemoteAddr may be ours, but RemoteAddr of a wrapper may wait for the
		// first bytes of the client; and this is the goroutine that accepts.
		go func() {
			if t := s.conns.find(c.RemoteAddr()); t != nil {
				s.begin(c, t)
			}
		}()
	}
	if s.state != nil {
		s.state(c, http.StateNew)
	}
}

// findWrapped finds the track of a connection that is not ours itself; last is
// true if it will not be looked for again.
func (s *httpServer) findWrapped(c net.Conn, last bool) *sockets.Track {
	if reflect.TypeOf(c).Comparable() {
		s.mu.Lock()
		t := s.wrapped[c]
		if last {
			delete(s.wrapped, c)
		}
		s.mu.Unlock()
		if t != nil {
			return t
		}
	}
	return s.conns.find(c.RemoteAddr())
}
