package grace

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// HTTP gives an actor that serves ln with srv, to be handed to a
// [github.com/oklog/run.Group] or, with [Pair], to [Upgrader.Run]. execute
// serves until this process has handed over and drained, or has stopped, and
// returns nil then; what ends the server by itself is its error. interrupt is
// [Upgrader.Close].
//
// ln is one that [Upgrader.Listen] gave, or that wraps one. srv may serve
// several, with a call of HTTP for each. HTTP sets srv's Handler, ConnState and
// TLSNextProto to its own, which call the former ones; all must be set before,
// and srv must not be served or shut down otherwise.
//
// The drain: HTTP/1 responses say "Connection: close", HTTP/2 connections get
// GOAWAY, an idle connection is left open for a while before it is closed, and
// a hijacked one is waited for. When all but hijacked ones are gone, or nothing
// is left, srv.Shutdown runs what was registered with RegisterOnShutdown.
// [DrainTimeout] cuts off the rest.
func (u *Upgrader) HTTP(srv *http.Server, ln net.Listener) (execute func() error, interrupt func(error)) {
	s := u.httpServer(srv)
	s.listens(ln)
	return func() error { return s.serve(ln, (*http.Server).Serve) }, func(error) { u.Close() }
}

// HTTPS is [Upgrader.HTTP] over TLS; the files and srv.TLSConfig are used as by
// [net/http.Server.ServeTLS].
func (u *Upgrader) HTTPS(srv *http.Server, ln net.Listener, certFile, keyFile string) (execute func() error, interrupt func(error)) {
	s := u.httpServer(srv)
	s.listens(ln)
	serve := func(srv *http.Server, ln net.Listener) error { return srv.ServeTLS(ln, certFile, keyFile) }
	return func() error { return s.serve(ln, serve) }, func(error) { u.Close() }
}

// idleGrace is how long a connection that can't be moved may stay idle once its
// process wants to end.
const idleGrace = 5 * time.Second

// An httpServer drains an *http.Server without losing a request, which
// Shutdown alone would: that closes connections that are idle at that moment,
// while a client may be sending.
type httpServer struct {
	u       *Upgrader
	handler http.Handler // the user's
	state   func(net.Conn, http.ConnState)
	twin    *http.Server // owns the HTTP/2 connections, to send them GOAWAY

	draining atomic.Bool
	finished chan struct{} // closed by shutdown: execute returns

	mu        sync.Mutex
	srv       *http.Server
	listeners []*listener
	foreign   map[net.Conn]bool // connections that none of our listeners has accepted
	changed   chan struct{}     // closed when something may have ended, if somebody waits
	resumed   chan struct{}     // closed when a drain was called off
	isShut    bool              // srv.Shutdown was called
}

// httpServer gives the one server of srv.
func (u *Upgrader) httpServer(srv *http.Server) *httpServer {
	u.serversMu.Lock()
	defer u.serversMu.Unlock()
	for _, d := range u.servers {
		if s, ok := d.(*httpServer); ok && s.srv == srv {
			return s
		}
	}
	s := &httpServer{
		u: u, srv: srv, handler: srv.Handler, state: srv.ConnState,
		finished: make(chan struct{}), resumed: make(chan struct{}), foreign: map[net.Conn]bool{},
	}
	s.adoptHTTP2()
	srv.Handler = s
	srv.ConnState = s.connState
	u.servers = append(u.servers, s)
	return s
}

// adoptHTTP2 lets another server own the HTTP/2 connections of srv. net/http
// sends GOAWAY in Shutdown only, to the connections of the server on which
// HTTP/2 was configured; the twin has no others, and can be shut down first.
func (s *httpServer) adoptHTTP2() {
	next := s.srv.TLSNextProto
	if next == nil {
		s.twin = &http.Server{
			ReadTimeout: s.srv.ReadTimeout, IdleTimeout: s.srv.IdleTimeout,
			HTTP2: s.srv.HTTP2, Protocols: s.srv.Protocols, ErrorLog: s.srv.ErrorLog,
		}
		s.twin.Serve(closedListener{}) // configures HTTP/2, and returns
		next = s.twin.TLSNextProto
	}
	if next == nil {
		return
	}
	s.srv.TLSNextProto = make(map[string]func(*http.Server, *tls.Conn, http.Handler), len(next))
	for proto, serve := range next {
		s.srv.TLSNextProto[proto] = func(srv *http.Server, c *tls.Conn, h http.Handler) {
			if t := s.trackOf(plainConn(c)); t != nil {
				t.setPhase(phaseHTTP2)
			}
			serve(srv, c, h)
		}
	}
}

// plainConn is c, or what net/http passes for cleartext HTTP/2 in its place.
func plainConn(c *tls.Conn) net.Conn {
	if p, ok := c.NetConn().(interface{ UnencryptedNetConn() net.Conn }); ok {
		return p.UnencryptedNetConn()
	}
	return c
}

type closedListener struct{}

func (closedListener) Accept() (net.Conn, error) { return nil, net.ErrClosed }
func (closedListener) Close() error              { return nil }
func (closedListener) Addr() net.Addr            { return &net.TCPAddr{} }

// listens finds the listeners of ours that ln is, or wraps.
func (s *httpServer) listens(ln net.Listener) {
	var found []*listener
	if l, ok := ln.(*listener); ok {
		found = []*listener{l}
	} else {
		found = s.u.socks.listeners(ln.Addr())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range found {
		s.listeners = append(s.listeners, l)
		l.gate.watch(s.check)
		l.live.watch(s.check)
	}
}

// serve serves ln until the drain is over, again if a drain was called off.
func (s *httpServer) serve(ln net.Listener, serve func(*http.Server, net.Listener) error) error {
	for {
		s.mu.Lock()
		srv, resumed := s.srv, s.resumed
		s.mu.Unlock()
		err := serve(srv, ln)
		if !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
			return err
		}
		select {
		case <-s.finished:
			return nil
		case <-resumed:
			continue
		default:
		}
		if !s.draining.Load() && s.u.ctx.Err() == nil && !s.u.socks.keep(nil) {
			return err // closed by the program itself
		}
		select {
		case <-s.finished:
			return nil
		case <-resumed:
		}
	}
}

// ServeHTTP tells the client of a connection that can't be moved to open
// another one for its next request.
func (s *httpServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if s.draining.Load() {
		w.Header().Set("Connection", "close") // HTTP/2: GOAWAY
	}
	h := s.handler
	if h == nil {
		h = http.DefaultServeMux
	}
	h.ServeHTTP(w, r)
}

func (s *httpServer) connState(c net.Conn, state http.ConnState) {
	t := s.trackOf(c)
	if t == nil {
		s.foreignState(c, state)
	} else {
		switch state {
		case http.StateActive:
			t.setPhase(phaseBusy)
		case http.StateIdle:
			t.setPhase(phaseIdle)
		case http.StateHijacked:
			t.setPhase(phaseHijacked)
			t.l.live.hijack()
		case http.StateNew:
			if s.draining.Load() {
				t.finish(idleGrace)
			}
		}
	}
	if s.state != nil {
		s.state(c, state)
	}
}

// trackOf finds the track under c, whoever has wrapped it.
func (s *httpServer) trackOf(c net.Conn) *track {
	if t := trackOf(c); t != nil {
		return t
	}
	s.mu.Lock()
	listeners := s.listeners
	s.mu.Unlock()
	for _, l := range listeners {
		if t := l.live.find(c); t != nil {
			return t
		}
	}
	return nil
}

// foreignState counts a connection that we know nothing of; it ends as
// srv.Shutdown ends it.
func (s *httpServer) foreignState(c net.Conn, state http.ConnState) {
	s.mu.Lock()
	if state == http.StateClosed || state == http.StateHijacked {
		delete(s.foreign, c)
	} else {
		s.foreign[c] = state == http.StateIdle
	}
	s.mu.Unlock()
	s.check()
}

// check wakes who waits for an end.
func (s *httpServer) check() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
}

// wait returns true when ended says so, which is asked again at each change;
// false if the drain's time is up or it was called off before.
func (s *httpServer) wait(d *drain, ended func() bool) bool {
	for {
		s.mu.Lock()
		if s.changed == nil {
			s.changed = make(chan struct{})
		}
		changed := s.changed
		s.mu.Unlock()
		if ended() {
			return true
		}
		select {
		case <-changed:
		case <-d.cut:
			return false
		case <-d.ctx.Done():
			return false
		}
	}
}

func (s *httpServer) drain(d *drain) drainReport {
	s.draining.Store(true)
	begun := s.tracks()
	for _, t := range begun {
		t.finish(idleGrace)
	}
	if s.twin != nil {
		s.twin.Shutdown(d.ctx)
	}
	if s.wait(d, func() bool { return s.left(false) == 0 }) && s.left(true) > 0 {
		// Only hijacked ones are left: tell their owners.
		s.mu.Lock()
		s.isShut = true
		s.mu.Unlock()
		go s.srv.Shutdown(d.ctx)
		s.wait(d, func() bool { return s.left(true) == 0 })
	}
	if d.cancelled() {
		s.resume()
		return drainReport{}
	}
	cut := s.left(true)
	return drainReport{finished: max(0, len(begun)-cut), cut: cut}
}

// left counts what is not over yet: connections, and listeners through which
// some may still come.
func (s *httpServer) left(hijacked bool) int {
	s.mu.Lock()
	n, listeners := len(s.foreign), s.listeners
	s.mu.Unlock()
	for _, l := range listeners {
		if !l.gate.isQuiet() {
			n++
		}
		n += l.live.count(hijacked)
	}
	return n
}

func (s *httpServer) tracks() (all []*track) {
	s.mu.Lock()
	listeners := s.listeners
	s.mu.Unlock()
	for _, l := range listeners {
		all = append(all, l.live.all()...)
	}
	return all
}

// resume serves on: the drain was called off.
func (s *httpServer) resume() {
	s.draining.Store(false)
	for _, t := range s.tracks() {
		t.finish(0)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.isShut {
		s.srv, s.isShut = clone(s.srv), false // it can't serve again
	}
	close(s.resumed)
	s.resumed = make(chan struct{})
}

func clone(s *http.Server) *http.Server {
	return &http.Server{
		Addr: s.Addr, Handler: s.Handler, DisableGeneralOptionsHandler: s.DisableGeneralOptionsHandler,
		TLSConfig: s.TLSConfig, ReadTimeout: s.ReadTimeout, ReadHeaderTimeout: s.ReadHeaderTimeout,
		WriteTimeout: s.WriteTimeout, IdleTimeout: s.IdleTimeout, MaxHeaderBytes: s.MaxHeaderBytes,
		TLSNextProto: s.TLSNextProto, ConnState: s.ConnState, ErrorLog: s.ErrorLog,
		BaseContext: s.BaseContext, ConnContext: s.ConnContext, HTTP2: s.HTTP2, Protocols: s.Protocols,
	}
}

// shutdown ends the server; what is left is cut off.
func (s *httpServer) shutdown() {
	s.mu.Lock()
	srv := s.srv
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if s.left(true) > 0 {
		cancel()
	}
	if srv.Shutdown(ctx) != nil {
		srv.Close()
	}
	for _, t := range s.tracks() {
		t.inner.Close()
	}
	close(s.finished)
}
