package serve

import (
	"context"
	"errors"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/julofinance/grace/v3/internal/sockets"
)

// The program may shut its server down, or close it, by itself. net/http ends the
// connections of that one server then, but they are with copies of it.
//
// So the user's server has one connection of its own, in memory: the anchor. Its request
// is answered when no copy has a connection any more, and so Shutdown waits for these as
// well, as long as its context lets it; RegisterOnShutdown tells that Shutdown was called.
// Close closes the anchor, and that closes the copies.

// anchorHost is the host of the anchor's request, which has preludeURI.
const anchorHost = "anchor"

// An anchor is that of one server.
type anchor struct {
	raise sync.Once
	held  chan struct{} // closed when the handler has the request
	over  chan struct{} // closed when that is to be answered
	end   sync.Once

	raised atomic.Bool   // net/http has the connection
	gone   chan struct{} // closed when it is done with that
}

// hold is the handler of the anchor's request.
func (a *anchor) hold() {
	close(a.held)
	<-a.over
}

// letGo lets the anchor's request be answered.
func (a *anchor) letGo() { a.end.Do(func() { close(a.over) }) }

// An anchorConn sends one request, and then nothing.
type anchorConn struct {
	s      *httpServer
	unread *strings.Reader // net/http has one Read at a time
	once   sync.Once
	closed chan struct{}
}

func newAnchorConn(s *httpServer) *anchorConn {
	request := "GET " + sockets.PreludeURI + " HTTP/1.1\r\nHost: " + anchorHost + "\r\nConnection: close\r\n\r\n"
	return &anchorConn{s: s, unread: strings.NewReader(request), closed: make(chan struct{})}
}

func (c *anchorConn) Read(p []byte) (int, error) {
	n, err := c.unread.Read(p)
	if err != nil {
		<-c.s.anchor.over // else net/http concludes that the client is gone
	}
	return n, err
}

// Close, if it is called before the request is answered, comes from the user's
// Server.Close, which holds a lock of that server.
func (c *anchorConn) Close() error {
	c.once.Do(func() {
		close(c.closed)
		select {
		case <-c.s.anchor.over:
		default:
			c.s.closedByUser()
			c.s.anchor.letGo()
		}
	})
	return nil
}

func (c *anchorConn) Write(p []byte) (int, error)      { return len(p), nil }
func (c *anchorConn) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (c *anchorConn) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (c *anchorConn) SetDeadline(time.Time) error      { return nil }
func (c *anchorConn) SetReadDeadline(time.Time) error  { return nil }
func (c *anchorConn) SetWriteDeadline(time.Time) error { return nil }

// An anchorListener gives the anchor, and ends.
type anchorListener struct{ c net.Conn }

func (l *anchorListener) Accept() (net.Conn, error) {
	if l.c == nil {
		return nil, net.ErrClosed
	}
	c := l.c
	l.c = nil
	return c, nil
}

func (l *anchorListener) Close() error   { return nil }
func (l *anchorListener) Addr() net.Addr { return &net.TCPAddr{} }

// anchorState hears what net/http says of the anchor's connection. After StateClosed it
// does not look at the user's server any more, which may be the program's again.
func (s *httpServer) anchorState(state http.ConnState) {
	switch state {
	case http.StateNew: // before Serve returns
		s.anchor.raised.Store(true)
	case http.StateClosed:
		close(s.anchor.gone)
	}
}

// awaitGone waits until net/http is done with the anchor, or ctx ends.
func (a *anchor) awaitGone(ctx context.Context) {
	if a.raised.Load() {
		select {
		case <-a.gone:
		case <-ctx.Done():
		}
	}
}

// raiseAnchor is called before a copy serves, and before the user's server is shut down.
// s.mu is not held: code that holds the server's lock may need it. A server without HTTP/1
// can't have an anchor.
func (s *httpServer) raiseAnchor() {
	s.anchor.raise.Do(func() {
		if p := s.template.Protocols; p != nil && !p.HTTP1() && *p != (http.Protocols{}) {
			return
		}
		if !s.hasHandler() { // another one would answer, and not hold it
			return
		}
		c := newAnchorConn(s)
		if err := s.user.Serve(&anchorListener{c}); errors.Is(err, http.ErrServerClosed) {
			s.endedByUser()
			return
		}
		// A server that is shut down closes what it has not read a request from.
		select {
		case <-s.anchor.held:
		case <-c.closed:
		}
	})
}

// shutUserOnce is shutUser, but once: net/http too calls what was registered with
// RegisterOnShutdown once for a Shutdown, and after a roll back it has been called.
func (s *httpServer) shutUserOnce() {
	if s.userShut.CompareAndSwap(false, true) {
		s.shutUser()
	}
}

// shutUser shuts the user's server down for us, not for the program.
func (s *httpServer) shutUser() {
	s.raiseAnchor()
	s.mu.Lock()
	s.ourShutdowns++
	s.mu.Unlock()
	shutNow(s.user)
}

// onShutdown is registered with the user's server: each call of Shutdown calls
// it once, those by us as well.
func (s *httpServer) onShutdown() {
	s.mu.Lock()
	ours := s.ourShutdowns > 0
	if ours {
		s.ourShutdowns--
	}
	s.mu.Unlock()
	if ours {
		return
	}
	copies := s.endedByUser()
	for _, c := range copies {
		shutNow(c) // all of them, before the first is waited for
	}
	// net/http too waits no longer than this for a connection that has sent no
	// request.
	late := time.AfterFunc(5*time.Second, s.closeArrivals)
	defer late.Stop()
	for _, c := range copies {
		c.Shutdown(context.Background())
	}
	for wait := time.Millisecond; s.arrivals.n.Load() > 0; wait = min(2*wait, 500*time.Millisecond) {
		select {
		case <-time.After(wait): // Shutdown, which waits for this, does the same
		case <-s.finished:
			return
		}
	}
	s.anchor.letGo()
}

// closedByUser is called when the program calls Close of its server.
func (s *httpServer) closedByUser() {
	copies := s.endedByUser()
	s.closeArrivals()
	for _, c := range copies {
		c.Close()
	}
}

// endedByUser: no connection is given to a server any more. It returns those that
// have some besides the user's.
func (s *httpServer) endedByUser() (copies []*http.Server) {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.userEnded:
	default:
		close(s.userEnded)
	}
	s.twinErr = http.ErrServerClosed
	if s.twin != nil {
		s.twin.in.Close()
	}
	for c := range s.copies {
		copies = append(copies, c)
	}
	return copies
}

func (s *httpServer) isEndedByUser() bool {
	select {
	case <-s.userEnded:
		return true
	default:
		return false
	}
}

func (s *httpServer) closeArrivals() {
	for _, c := range s.arrivals.all() {
		if s.arrivals.end(c, func() bool { return true }) {
			c.Close()
		}
	}
}

// addCopy remembers a copy, and forgets those that were shut down before and have
// no connection any more. s.mu is held.
func (s *httpServer) addCopy(c *http.Server) {
	for old, isShut := range s.copies {
		if isShut && shutNow(old) == nil {
			delete(s.copies, old)
		}
	}
	s.copies[c] = false
}

// markShut notes that a server was shut down, if it is a copy. s.mu is held.
func (s *httpServer) markShut(c *http.Server) {
	if _, ok := s.copies[c]; ok {
		s.copies[c] = true
	}
}
