package serve

import (
	"context"
	"errors"
	"maps"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/julofinance/grace/v3/internal/http2conn"
	"github.com/julofinance/grace/v3/internal/sockets"
)

// HTTP/2 connections are served by an http.Server of their own, the twin.
// net/http sends GOAWAY in Shutdown only, and Shutdown closes HTTP/1
// connections that are idle, which are to be moved or to be left open for a
// while. The twin has none of those, and so can be shut down first: when each client
// knows that it is to begin no more streams, which package http2conn sees to.
//
// It serves from a listener that is fed by a door, which has found out before
// what the client speaks. How net/http hands out HTTP/2 connections by itself
// differs from version to version (Go 1.27 ignores the functions in TLSNextProto
// that Go 1.26 calls): nothing of that is needed.
//
// If the user has set TLSNextProto, most often by http2.ConfigureServer of
// golang.org/x/net, that HTTP/2 is bound to the user's server itself: to its
// settings, and to the GOAWAY that its Shutdown sends. Then the first twin is
// that server, and a copy of it serves HTTP/1.

// A twin serves HTTP/2 connections, until they are told to go away.
type twin struct {
	srv  *http.Server
	in   *feed
	shut atomic.Bool // it was shut down: the connections that it still has were told to go away
}

// A feed is a listener whose connections others have accepted.
type feed struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newFeed() *feed { return &feed{conns: make(chan net.Conn), done: make(chan struct{})} }

func (f *feed) Accept() (net.Conn, error) {
	select {
	case c := <-f.conns:
		return c, nil
	case <-f.done:
		return nil, net.ErrClosed
	}
}

// give is false if nothing accepts from the feed any more.
func (f *feed) give(c net.Conn) bool {
	select {
	case f.conns <- c:
		return true
	case <-f.done:
		return false
	}
}

func (f *feed) Close() error { f.once.Do(func() { close(f.done) }); return nil }

func (f *feed) Addr() net.Addr { return &net.TCPAddr{} }

// serveHTTP2 gives c to the twin.
func (s *httpServer) serveHTTP2(c net.Conn) error {
	if t := s.trackOf(c); t != nil {
		t.SetPhase(sockets.PhaseHTTP2)
	} else {
		s.foreignHTTP2(hookConn(c))
	}
	for {
		tw, err := s.theTwin()
		if err != nil {
			return err
		}
		served, ok := s.enter(tw, c)
		if !ok { // goAway has come first
			continue
		}
		if tw.in.give(served) {
			break
		}
		s.leave(served)
		s.retire(tw)
	}
	if s.leaves() { // it has come when the others had been told already
		time.AfterFunc(min(lateHTTP2, s.host.IdleGrace), func() {
			if s.leaves() {
				s.goAway(goAwayTime)
			}
		})
	}
	return nil
}

// lateHTTP2 is how long a connection that comes while the process drains, or just before, may
// begin streams: one that is told to go away at once would have been opened in
// vain. A client that waits for our SETTINGS before it sends its first request, as HAProxy
// does, may take that for a connection that has failed.
const lateHTTP2 = time.Second

// goAwayTime is how long a client may take to show that it begins no more streams. It
// has the time of a round trip.
const goAwayTime = time.Second

// tlsStateKey is that of a connection's *tls.ConnectionState in its context, if
// net/http does not know it.
type tlsStateKey struct{}

// enter returns c as the twin is to be given it; false if that takes no more.
func (s *httpServer) enter(tw *twin, c net.Conn) (served net.Conn, ok bool) {
	served, conn := http2conn.Serve(tw.srv, c)
	s.mu.Lock()
	defer s.mu.Unlock()
	if conn != nil && s.twin == tw {
		s.http2[conn] = tw
	}
	return served, s.twin == tw
}

// leave forgets what enter has returned, and returns what it was given.
func (s *httpServer) leave(served net.Conn) net.Conn {
	conn := http2conn.Of(served)
	if conn == nil {
		return served
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.http2, conn)
	return conn.NetConn()
}

// theTwin returns the present twin, which is made when the first connection
// comes.
func (s *httpServer) theTwin() (*twin, error) {
	s.raiseAnchor()
	if s.bound {
		s.setUp.Do(func() { s.user.Serve(closedListener{}) })
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.twinErr != nil || s.twin != nil {
		return s.twin, s.twinErr
	}
	tw := &twin{in: newFeed()}
	if s.bound && !s.userShut.Load() {
		tw.srv = s.user
	} else {
		tw.srv = s.http2Clone()
		tw.srv.ConnState = func(c net.Conn, state http.ConnState) {
			if state == http.StateActive && tw.shut.Load() {
				go shutNow(tw.srv) // Shutdown did not know c yet when it sent GOAWAY
			}
			s.connState(c, state)
		}
		tw.srv.Serve(closedListener{}) // sets it up
		s.addCopy(tw.srv)
	}
	s.twin = tw
	go func() {
		err := tw.srv.Serve(tw.in)
		if tw.srv == s.user && errors.Is(err, http.ErrServerClosed) { // perhaps the program has shut it down: the next twin is a copy
			s.userShut.Store(true)
		}
		tw.in.Close()
		if !errors.Is(err, http.ErrServerClosed) {
			s.mu.Lock()
			s.twinErr = err
			s.mu.Unlock()
		}
	}()
	return tw, nil
}

// retire forgets a twin: the next connection makes another one.
func (s *httpServer) retire(tw *twin) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.twin == tw {
		s.twin = nil
	}
}

// goAway sends GOAWAY on all HTTP/2 connections: twice, with so much time between at
// most, or once if that is 0. One on which nothing was asked yet has lateHTTP2 for that first.
// They end when their streams have, also if the drain is called off meanwhile: a client that
// was told to go away opens another connection.
func (s *httpServer) goAway(after time.Duration) {
	s.mu.Lock()
	tw := s.twin
	s.twin = nil
	var conns []*http2conn.Conn
	for c, of := range s.http2 {
		if of == tw && after > 0 {
			conns = append(conns, c)
		}
	}
	shutUser := s.bound && s.userShut.CompareAndSwap(false, true)
	s.mu.Unlock()
	shut := func() {
		if tw != nil {
			tw.shut.Store(true)
			s.mu.Lock()
			s.markShut(tw.srv)
			s.mu.Unlock()
		}
		if shutUser {
			// Also if the twin is another server: connections that were hijacked, by
			// h2c.NewHandler, say, may have been registered with this one.
			s.shutUser()
		}
		if tw != nil && tw.srv != s.user {
			shutNow(tw.srv)
		}
	}
	if len(conns) == 0 {
		shut()
		return
	}
	var left atomic.Int64
	left.Store(int64(len(conns)))
	for _, c := range conns {
		tell := func() {
			c.GoAway(after, func() {
				if left.Add(-1) == 0 {
					shut()
				}
			})
		}
		if c.Begun() {
			tell()
		} else {
			time.AfterFunc(min(lateHTTP2, s.host.IdleGrace), tell)
		}
	}
}

// closeTwin cuts off what is left.
func (s *httpServer) closeTwin() {
	s.mu.Lock()
	tw := s.twin
	s.twin, s.twinErr = nil, http.ErrServerClosed
	s.mu.Unlock()
	if tw != nil {
		tw.srv.Close()
	}
}

// shutNow is Shutdown without the wait, which would poll.
func shutNow(srv *http.Server) error {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return srv.Shutdown(ctx)
}

// http2Clone is a copy of the user's server that speaks HTTP/2 only, by
// net/http's own implementation.
func (s *httpServer) http2Clone() *http.Server {
	c := clone(s.template)
	c.Protocols = new(http.Protocols)
	c.Protocols.SetHTTP2(true)
	c.Protocols.SetUnencryptedHTTP2(true)
	c.BaseContext = nil // its connections bring their context along
	c.TLSConfig = nil   // net/http would add to it
	c.TLSNextProto = maps.Clone(c.TLSNextProto)
	delete(c.TLSNextProto, "h2")
	delete(c.TLSNextProto, "unencrypted_http2")
	return c
}

// http1Clone is a copy of the user's server that speaks no HTTP/2.
func (s *httpServer) http1Clone() *http.Server {
	c := clone(s.template)
	if c.Protocols != nil {
		p := *c.Protocols
		p.SetHTTP2(false)
		p.SetUnencryptedHTTP2(false)
		if p == (http.Protocols{}) && *c.Protocols != p {
			p.SetHTTP2(true) // net/http takes none at all for HTTP/1
		}
		c.Protocols = &p
	}
	c.TLSNextProto = noProtocols()
	return c
}
