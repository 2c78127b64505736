package serve

import (
	"crypto/tls"
	"net"
	"net/http"

	"github.com/julofinance/grace/v3/internal/http2conn"
	"github.com/julofinance/grace/v3/internal/sockets"
)

// What net/http tells of each connection, by ConnState, and what follows from it.

func (s *httpServer) connState(c net.Conn, state http.ConnState) {
	if _, ok := c.(*anchorConn); ok {
		s.anchorState(state)
		return
	}
	if state == http.StateClosed {
		c = s.leave(c)
	}
	if conn := http2conn.Of(c); conn != nil {
		c = conn.NetConn()
	}
	c = sessionOf(c)
	if state == http.StateNew && s.arrivals.remove(c) {
		return // the door has told the hooks of it
	}
	c = hookConn(c)
	t := sockets.TrackOf(c)
	if t == nil && state == http.StateNew {
		s.onWrapped(c)
		return
	}
	if t == nil {
		t = s.findWrapped(c, state == http.StateClosed || state == http.StateHijacked)
	}
	if t != nil && t.IsMuted() { // muted: the program has seen no request
		if s.onPrelude(t, state) {
			return
		}
	} else if s.state != nil && state == http.StateIdle {
		s.state(c, state) // it may set a deadline: the next one is to be the server's
	}
	if t == nil {
		s.foreignState(c, state)
	} else {
		switch state {
		case http.StateActive:
			t.SetPhase(sockets.PhaseBusy)
		case http.StateIdle:
			t.SetPhase(sockets.PhaseIdle)
		case http.StateHijacked:
			t.SetPhase(sockets.PhaseHijacked)
			t.Listener.Live.Hijack()
		case http.StateNew:
			t.PlayPrelude()
			s.begin(c, t)
		}
	}
	if s.state != nil && state != http.StateIdle {
		s.state(c, state)
	}
}

// begin is called for each new connection, for one of ours before its first Read.
func (s *httpServer) begin(c net.Conn, t *sockets.Track) {
	direct := t.Protocol() == sockets.ProtocolTLS
	switch c.(type) {
	case *sockets.TCPConn, *sockets.UnixConn, *sockets.MemConn:
		direct = true
	case interface{ ConnectionState() tls.ConnectionState }:
		t.SetTLS()
	}
	t.SetKnown(direct)
	if s.ends() {
		s.letGo(t)
	}
}

// onPrelude is connState for a connection whose server reads or answers the
// prelude; false if the program is to be told of the state all the same.
func (s *httpServer) onPrelude(t *sockets.Track, state http.ConnState) bool {
	switch state {
	case http.StateActive:
		t.SetPhase(sockets.PhaseBusy)
	case http.StateIdle:
		t.Played()
		t.SetPhase(sockets.PhaseIdle)
	default:
		return false
	}
	return true
}

// trackOf finds the track under c, also if c is wrapped.
func (s *httpServer) trackOf(c net.Conn) *sockets.Track {
	c = hookConn(c)
	if t := sockets.TrackOf(c); t != nil {
		return t
	}
	return s.findWrapped(c, false)
}
