package serve

import (
	"context"
	"crypto/tls"
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

// HTTP returns what serves srv on ln.
func (h *Host) HTTP(srv *http.Server, ln net.Listener) (execute func() error) {
	s := h.httpServer(srv)
	if through := h.seeThrough(ln); through != nil {
		own := h.listensWith(&s.conns, through.Below)
		taker := s.takesTLS(through.Below)
		return func() error { return s.serveThrough(ln, own, taker, through) }
	}
	own := h.listensWith(&s.conns, ln)
	if l, ours := ln.(*sockets.Listener); !ours {
		s.doubt(own)
	} else if p := s.template.Protocols; p == nil || p.HTTP1() {
		h.takes(l, sockets.ProtocolHTTP1)
	}
	s.seesWrapper(ln)
	return func() error { return s.serveHTTP(ln, own) }
}

// HTTPS is HTTP over TLS.
func (h *Host) HTTPS(srv *http.Server, ln net.Listener, certFile, keyFile string) (execute func() error) {
	s := h.httpServer(srv)
	s.seesWrapper(ln)
	own := h.listensWith(&s.conns, ln)
	taker := s.takesTLS(ln)
	return func() error { return s.serveTLS(ln, own, taker, certFile, keyFile) }
}

// An httpServer drains an *http.Server without losing a request, which
// Shutdown alone would: that closes connections that are idle at that moment,
// while a client may be sending.
type httpServer struct {
	host        *Host
	user        *http.Server // as the user knows it
	template    *http.Server // what the user had set of it, but for our Handler and hooks: copied by clone
	bound       bool         // the user has set TLSNextProto: HTTP/2 is bound to that very server
	handler     http.Handler // the user's, like the next
	state       func(net.Conn, http.ConnState)
	connContext func(context.Context, net.Conn) context.Context
	baseContext func(net.Listener) context.Context

	draining atomic.Pointer[Drain] // nil if it does not drain
	lingers  time.Duration         // see lingerFor
	finished chan struct{}         // closed by End: execute returns
	lame     atomic.Bool           // clients are sent away, though it does not drain
	userShut atomic.Bool           // user.Shutdown was called, which is once

	setUp     sync.Once // of user, if it is bound
	anchor    anchor
	userEnded chan struct{} // closed when the program has shut user down, or closed it

	conns    connSet
	arrivals arrivals
	doubts   atomic.Bool // doubted has some
	wraps    atomic.Bool // some of its listeners are not ours, but wrap one
	peeks    atomic.Bool // some of its connections are a peekedConn
	named    atomic.Pointer[named]
	movesTLS atomic.Bool // some of its connections are a sockets.TLSConn

	// srv serves HTTP/1. It is a copy of user, so that user can be shut down as soon as a
	// drain begins: that calls what was registered with RegisterOnShutdown, and would close
	// idle connections and the listeners if user had any.
	srv *http.Server

	mu      sync.Mutex // guards the following
	twin    *twin      // serves HTTP/2; nil before the first connection of it
	twinErr error      // why it can't
	http2   map[*http2conn.Conn]*twin
	mover   *sockets.Mover          // while it drains after an upgrade
	since   time.Time               // when the drain began
	foreign map[net.Conn]*foreigner // connections that none of our listeners has accepted
	wrapped map[net.Conn]*sockets.Track
	resumed chan struct{}       // closed when a drain was called off
	back    chan struct{}       // closed when this process accepts again, and there was no drain: see reopened
	doubted []*sockets.Listener // see proof.go
	// copies of user's server that may have connections, and whether they were shut down
	copies       map[*http.Server]bool
	ourShutdowns int // of user, which onShutdown has not been told of yet
	vain         int // requests of which nothing could be concluded
}

// httpServer gives the one server of srv.
func (h *Host) httpServer(srv *http.Server) *httpServer {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, d := range h.servers {
		if s, ok := d.(*httpServer); ok && s.user == srv {
			return s
		}
	}
	enableH2C(srv)
	s := &httpServer{
		host: h, user: srv, bound: len(srv.TLSNextProto) > 0,
		handler: srv.Handler, state: srv.ConnState, connContext: srv.ConnContext, baseContext: srv.BaseContext,
		finished: make(chan struct{}), resumed: make(chan struct{}), back: make(chan struct{}), userEnded: make(chan struct{}),
		anchor: anchor{held: make(chan struct{}), over: make(chan struct{}), gone: make(chan struct{})}, copies: map[*http.Server]bool{}, http2: map[*http2conn.Conn]*twin{}, foreign: map[net.Conn]*foreigner{}, wrapped: map[net.Conn]*sockets.Track{}, lingers: lingerFor,
	}
	srv.Handler, srv.ConnState, srv.ConnContext, srv.BaseContext = s, s.connState, s.contextOf, s.baseOf
	s.template = clone(srv)
	s.template.TLSNextProto = maps.Clone(srv.TLSNextProto)
	if srv.TLSConfig != nil {
		s.template.TLSConfig = srv.TLSConfig.Clone()
	}
	s.srv = clone(s.template)
	if s.bound {
		s.srv = s.http1Clone()
		if _, ok := srv.TLSNextProto["unencrypted_http2"]; ok { // so that it takes an http2conn.Conn
			srv.Protocols = new(http.Protocols)
			srv.Protocols.SetHTTP1(true) // for the anchor
			srv.Protocols.SetHTTP2(true)
			srv.Protocols.SetUnencryptedHTTP2(true)
		}
	}
	s.addCopy(s.srv)
	s.lame.Store(h.lame)
	srv.RegisterOnShutdown(s.onShutdown)
	h.add(s)
	return s
}

var errHandlerSet = errors.New("grace: the Handler of the http.Server was set after the server was given to the Upgrader; set all of the server before")

// hasHandler reports whether the user's server has our handler.
func (s *httpServer) hasHandler() bool { return s.user.Handler == http.Handler(s) }

// serve serves ln until the drain is over, again if a drain was called off.
// own are the listeners of ours that ln is, or wraps.
func (s *httpServer) serve(ln net.Listener, own []*sockets.Listener) error {
	s.raiseAnchor()
	if !s.hasHandler() {
		return errHandlerSet
	}
	for {
		if s.isEndedByUser() {
			return http.ErrServerClosed
		}
		for _, l := range own { // the Serve before has ended, and closed it
			s.host.Socks.Unpark(l)
		}
		resumed := s.whenResumed()
		at := ln
		if d, ok := ln.(*door); ok {
			at = d.open()
		}
		err := s.srv.Serve(at)
		// ends is found out first, and only then whether the drain was called off right now.
		ends, back := s.ending(err)
		select {
		case <-s.finished:
			return nil
		case <-resumed:
			continue
		default:
		}
		if !ends {
			return err
		}
		if again, _ := s.awaitBack(s.finished, resumed, back, own); !again {
			return nil
		}
	}
}

// awaitBack waits, after an error that ending has judged, until this server is to accept again;
// not if over is closed before. drained reports whether it had begun to drain. A roll back
// before that does not open again what the program has closed.
func (s *httpServer) awaitBack(over, resumed, back <-chan struct{}, own []*sockets.Listener) (again, drained bool) {
	for {
		select {
		case <-over:
			return false, false
		case <-resumed:
			return true, true
		case <-back:
			back = s.whenBack() // first: another process may have been given the sockets since
			if s.isEndedByUser() || s.host.acceptsOn(own) {
				return true, false
			}
		}
	}
}

// ending reports whether err, from a listener, comes from the end of this
// process's part. While it drains any error comes from our closing the listener:
// a listener that wraps it may return an error of its own. back is closed when this
// process accepts again and this server had not begun to drain: resumed is not, then.
func (s *httpServer) ending(err error) (ends bool, back <-chan struct{}) {
	closed := errors.Is(err, http.ErrServerClosed) || errors.Is(err, net.ErrClosed)
	s.mu.Lock() // see resume
	draining := s.draining.Load() != nil
	back = s.back
	s.mu.Unlock()
	// Keep is asked after back was read: the roll back of what it tells of closes that.
	return draining || s.host.Stopping.Err() != nil || closed && s.host.Socks.Keep(nil), back
}

// whenBack returns the channel that the next call of reopened closes.
func (s *httpServer) whenBack() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.back
}

// reopened lets serve go on if Serve has ended while another process served, and this one
// did not drain: resume has nothing to call off then.
func (s *httpServer) reopened() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining.Load() == nil {
		close(s.back)
		s.back = make(chan struct{})
	}
}

// whenResumed returns the channel that is closed when the next drain is called
// off.
func (s *httpServer) whenResumed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.resumed
}

// ServeHTTP tells the client of a connection that can't be moved to open
// another one for its next request.
func (s *httpServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodPost && r.ProtoMajor == 1 && !s.wraps.Load() {
		if d, ok := w.(interface{ SetReadDeadline(time.Time) error }); ok {
			d.SetReadDeadline(sockets.PostMark)
		}
	}
	if r.RequestURI == sockets.PreludeURI {
		if r.Host == anchorHost {
			s.anchor.hold()
		}
		return
	}
	if s.host != nil && s.host.barred.Load() {
		w.Header().Set("Connection", "close")
		http.Error(w, "this process has handed over", http.StatusServiceUnavailable)
		return
	}
	if r.TLS == nil && r.ProtoMajor == 2 {
		r.TLS, _ = r.Context().Value(tlsStateKey{}).(*tls.ConnectionState)
	}
	if s.doubts.Load() && r.ProtoMajor == 1 {
		s.prove(r)
	}
	h := s.handler
	if h == nil {
		h = http.DefaultServeMux
	}
	if r.ProtoMajor >= 2 && s.host != nil {
		s.host.streams.begin()
		defer s.host.streams.end()
	}
	if r.ProtoMajor < 2 && s.saysGoodbye(r) { // HTTP/2 gets GOAWAY
		last := &goodbye{ResponseWriter: w, still: s.leaves}
		h.ServeHTTP(last, r)
		last.say()
		return
	}
	if s.peeks.Load() && r.ProtoMajor < 2 {
		w = &goodbye{ResponseWriter: w, said: true} // for its Hijack
	}
	h.ServeHTTP(w, r)
}

// leaves reports whether clients are to go: a drain may have been called off.
func (s *httpServer) leaves() bool { return s.ends() || s.lame.Load() }

// saysGoodbye reports whether the answer to r is the last one of its connection.
func (s *httpServer) saysGoodbye(r *http.Request) bool {
	if s.ends() {
		return s.isLast(r)
	}
	if !s.lame.Load() {
		return false
	}
	addr, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	if t := s.conns.find(addr); t != nil {
		t.Bid(s.lingers)
	}
	return true
}

// isLast reports, while connections are to end or to move, whether this one gets
// its last answer now.
func (s *httpServer) isLast(r *http.Request) bool {
	addr, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	t := s.conns.find(addr)
	if t == nil {
		return true
	}
	s.letGo(t) // drain may not have reached it yet
	if t.Movable() && time.Since(s.begun()) <= s.host.IdleGrace {
		return false
	}
	t.Bid(s.lingers) // also if requests are pipelined without a pause in which it could move
	return true
}

// ends reports whether connections are to end, or move. A drain that is called
// off ends none from that moment, though resume comes a little later.
func (s *httpServer) ends() bool {
	d := s.draining.Load()
	return d != nil && !d.cancelled()
}

// begun is when the drain began.
func (s *httpServer) begun() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.since
}

// letGo releases a connection that is seen while the server drains.
func (s *httpServer) letGo(t *sockets.Track) {
	s.mu.Lock()
	m := s.mover
	s.mu.Unlock()
	s.release(t, m)
	if !s.ends() { // the drain was called off meanwhile, and resume may have missed this connection
		t.Offer(nil)
		t.Finish(0)
	}
}

// release offers a connection to the new process, or lets it end here.
func (s *httpServer) release(t *sockets.Track, m *sockets.Mover) {
	if m.Accepts(t.Listener, t.Protocol()) && t.IsDirect() && t.Offer(m) {
		return
	}
	if t.IsTLS() {
		t.FinishBy(s.host.IdleGrace, s.restUntil())
	} else {
		t.Finish(s.host.IdleGrace)
	}
}

// restUntil is until when a connection that can't move may wait for a request.
func (s *httpServer) restUntil() time.Time {
	if d := s.draining.Load(); d != nil {
		return d.rest
	}
	return time.Time{}
}

func (s *httpServer) Drain(d *Drain) Report {
	m := d.Mover
	if m != nil && !s.host.idleRuleHolds() {
		m = nil
	}
	if m != nil && s.movesTLS.Load() && !s.host.tlsRuleHolds() {
		m.BarTLS()
	}
	if d.cancelled() { // that takes a moment: no client is to be told any more
		return Report{}
	}
	s.mu.Lock()
	s.mover = m // first: code that sees draining relies on it
	s.since = d.begun
	s.mu.Unlock()
	begun := len(s.conns.tracks()) // before the first of them is told
	s.draining.Store(d)
	if !s.bound { // else goAway does it
		s.shutUserOnce()
	}
	s.releaseAll(m)
	s.endAllIdleForeign()
	for _, c := range s.arrivals.all() {
		s.boundArrival(c)
	}
	s.goAway(goAwayTime)
	hijacked := 0
	if s.conns.wait(d, func() bool { return s.left(false) == 0 }) {
		if hijacked = s.left(true); hijacked > 0 {
			s.conns.wait(d, func() bool { return s.left(true) == 0 })
		}
	}
	if d.cancelled() {
		d.back(s)
		return Report{}
	}
	cut := s.foreigners() + s.conns.open(true)
	waited := max(0, hijacked-cut)
	return Report{Finished: max(0, begun-waited-cut), Waited: waited, Cut: cut}
}

// Offer releases all connections, unless drain has not come to that yet: drain
// looks at the idle rule first, and this goroutine can't wait for that.
func (s *httpServer) Offer(m *sockets.Mover) {
	s.mu.Lock()
	barred := s.mover == nil
	s.mu.Unlock()
	if !barred {
		s.releaseAll(m)
	}
}

func (s *httpServer) releaseAll(m *sockets.Mover) {
	for _, t := range s.conns.tracks() {
		s.release(t, m)
	}
}

// left counts what is not over yet.
func (s *httpServer) left(hijacked bool) int {
	return s.foreigners() + s.conns.left(hijacked)
}

// Resume lets the server serve on: the drain was called off.
func (s *httpServer) Resume() {
	if !s.resume() {
		return
	}
	for _, t := range s.conns.tracks() {
		t.Offer(nil)
		t.Finish(0)
	}
}

// resume reports whether the server was draining. Code that sees, with mu held, that it
// drains no more finds resumed closed: else it would take what has ended Serve in the
// drain for the program's doing.
func (s *httpServer) resume() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining.Swap(nil) == nil {
		return false
	}
	s.mover = nil
	s.unboundForeign()
	close(s.resumed)
	s.resumed = make(chan struct{})
	return true
}

// End ends the server; what is left is cut off.
func (s *httpServer) End() {
	if !s.bound {
		s.shutUserOnce() // it has not drained
	}
	s.anchor.letGo()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if s.left(true) > 0 {
		cancel()
	}
	for _, t := range s.conns.tracks() {
		t.FreeToClose()
	}
	s.goAway(0)
	if s.srv.Shutdown(ctx) != nil {
		s.srv.Close()
	}
	s.closeTwin()
	for _, t := range s.conns.tracks() {
		t.Cut()
	}
	s.anchor.awaitGone(ctx)
	close(s.finished)
}
