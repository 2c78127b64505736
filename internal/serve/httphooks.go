package serve

import (
	"context"
	"net"
	"net/http"

	"github.com/julofinance/grace/v3/internal/http2conn"
	"github.com/julofinance/grace/v3/internal/sockets"
	"github.com/julofinance/grace/v3/internal/tls13"
)

// serveHTTP serves ln as [net/http.Server.Serve] does.
func (s *httpServer) serveHTTP(ln net.Listener, own []*sockets.Listener) error {
	_, ours := ln.(*sockets.Listener)
	unencrypted := false
	if p := s.template.Protocols; p != nil && p.UnencryptedHTTP2() {
		var err error
		if _, _, unencrypted, err = speaks(s.template); err != nil {
			return err
		}
	}
	if ours && !unencrypted {
		return s.serve(ln, own) // HTTP/1, and nothing else
	}
	d := newDoor(s, ln)
	d.unencrypted = unencrypted
	return s.serveDoor(d, own)
}

// serveTLS serves ln as [net/http.Server.ServeTLS] does.
func (s *httpServer) serveTLS(ln net.Listener, own []*sockets.Listener, taker *tlsTaker, certFile, keyFile string) error {
	http1, http2, _, err := speaks(s.template)
	if err != nil {
		return err
	}
	d := newDoor(s, ln)
	if d.config, err = tlsConfig(s.template, http1, http2, certFile, keyFile); err != nil {
		return err
	}
	d.tickets = s.host.tickets(own, d.config)
	taker.serve(d, http1)
	return s.serveDoor(d, own)
}

// serveThrough serves ln, a listener of crypto/tls that was seen through, as
// [net/http.Server.Serve] does.
func (s *httpServer) serveThrough(ln net.Listener, own []*sockets.Listener, taker *tlsTaker, through *tls13.Listener) error {
	p := s.template.Protocols
	d := newDoor(s, ln)
	d.through = through
	taker.serve(d, p == nil || p.HTTP1())
	return s.serveDoor(d, own)
}

// serveDoor closes the user's listener once, at the end.
func (s *httpServer) serveDoor(d *door, own []*sockets.Listener) error {
	defer d.Listener.Close()
	d.own = own
	return s.serve(d, own)
}

// baseOf is BaseContext: the user's is asked about the user's listener.
func (s *httpServer) baseOf(ln net.Listener) context.Context {
	switch ln.(type) {
	case *feed, *anchorListener, closedListener: // what comes from there brings its context along, or needs none
		return context.Background()
	}
	d, ok := ln.(*visit)
	if ok {
		ln = d.Listener
	}
	ctx := context.Background()
	if s.baseContext != nil {
		ctx = s.baseContext(ln)
	}
	if ctx == nil {
		return nil // net/http panics
	}
	ctx = s.host.withHost(ctx)
	if ok {
		d.mu.Lock()
		d.base = ctx
		d.mu.Unlock()
	}
	return ctx
}

// contextOf is ConnContext.
func (s *httpServer) contextOf(ctx context.Context, c net.Conn) context.Context {
	if _, ok := c.(*anchorConn); ok {
		return ctx
	}
	conn := http2conn.Of(c)
	if conn != nil {
		c = conn.NetConn()
	}
	c = sessionOf(c)
	if known := s.arrivals.context(c); known != nil {
		if conn != nil && conn.Hidden() != nil {
			known = context.WithValue(known, tlsStateKey{}, conn.Hidden())
		}
		return known
	}
	return s.newContext(s.naming(ctx), c)
}

// A named is a context in which net/http begins connections, and the same with the
// server that contextServer gives.
type named struct {
	from, to context.Context
	srv      *http.Server
}

// naming lets ctx name contextServer: net/http has put the copy there that serves. It
// gives all connections of a call of Serve the same context, so they share ours, too.
func (s *httpServer) naming(ctx context.Context) context.Context {
	srv := s.contextServer()
	if n := s.named.Load(); n != nil && n.from == ctx && n.srv == srv {
		return n.to
	}
	if ctx.Value(http.ServerContextKey) == srv {
		return ctx
	}
	n := &named{ctx, context.WithValue(ctx, http.ServerContextKey, srv), srv}
	s.named.Store(n)
	return n.to
}

// newContext calls the user's ConnContext.
func (s *httpServer) newContext(ctx context.Context, c net.Conn) context.Context {
	if s.connContext == nil {
		return ctx
	}
	if ctx = s.connContext(ctx, hookConn(c)); ctx == nil {
		panic("ConnContext returned nil")
	}
	return ctx
}

// contextServer is the server that a request's context names: the user's, or
// what has taken its place once it was shut down.
func (s *httpServer) contextServer() *http.Server {
	if s.userShut.Load() {
		return s.srv
	}
	return s.user
}
