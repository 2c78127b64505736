package serve

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"sync"

	"github.com/julofinance/grace/v3/internal/sockets"
	"github.com/julofinance/grace/v3/internal/tls13"
)

// TLS 1.3 connections that speak HTTP/1 move as plaintext ones do, if Host.MoveTLS says
// so: see tlsconn.go of internal/sockets, and docs/tls.md for what crosses.

// A tlsRule is what is known of crypto/tls: nothing before the first call of
// tlsRuleHolds.
type tlsRule struct {
	once  sync.Once
	check func() error // nil: tls13.SelfCheck
	holds bool
}

// tlsRuleHolds checks at the first call whether the TLS of a connection can be taken out
// of crypto/tls. If not, all is finished as without MoveTLS.
func (h *Host) tlsRuleHolds() bool {
	r := &h.tls
	r.once.Do(func() {
		check := r.check
		if check == nil {
			check = tls13.SelfCheck
		}
		err := check()
		if r.holds = err == nil; !r.holds {
			h.Log.Warn("grace: no TLS connection is moved, they are finished here", "err", err)
		}
	})
	return r.holds
}

// A tlsTaker takes TLS connections that are moved to a listener.
type tlsTaker struct {
	ready   chan struct{}   // closed when what follows is known
	config  *tls.Config     // by which a door serves, or else
	through *tls13.Listener // what does
	http1   bool            // it serves HTTP/1
}

// takesTLS lets connections move to ln, and from there; nil if they may not.
func (s *httpServer) takesTLS(ln net.Listener) *tlsTaker {
	l, ours := ln.(*sockets.Listener)
	if !ours || !s.host.MoveTLS || !s.host.Move {
		return nil // what another listener does to a connection is not known
	}
	t := &tlsTaker{ready: make(chan struct{})}
	s.movesTLS.Store(true)
	l.Cover(t.covers)
	s.host.takes(l, sockets.ProtocolTLS)
	return t
}

// serve notes that d serves now.
func (t *tlsTaker) serve(d *door, http1 bool) {
	if t == nil {
		return
	}
	d.moves = true
	t.config, t.through, t.http1 = d.config, d.through, http1
	close(t.ready)
}

// covers is a sockets.Cover. The old process may offer connections before the server here
// has loaded its certificates.
func (t *tlsTaker) covers(ctx context.Context, c net.Conn, s *tls13.State) (tls.ConnectionState, error) {
	select {
	case <-t.ready:
	case <-ctx.Done():
		return tls.ConnectionState{}, errors.New("the server does not serve yet")
	}
	if !t.http1 {
		return tls.ConnectionState{}, errors.New("the server does not speak HTTP/1")
	}
	if t.through != nil {
		return t.through.Covers(ctx, c, s)
	}
	return tls13.Covers(ctx, c, s, t.config)
}

// seeThrough returns ln as a listener of crypto/tls around one of ours; nil if it is none,
// or connections over TLS don't move anyway.
func (h *Host) seeThrough(ln net.Listener) *tls13.Listener {
	if !h.MoveTLS || !h.Move {
		return nil
	}
	through := tls13.Through(ln)
	if through == nil {
		return nil
	}
	if _, ours := through.Below.(*sockets.Listener); !ours {
		return nil
	}
	return through
}

// enclose returns what net/http is given of c, whose handshake is over.
func (d *door) enclose(c net.Conn) net.Conn {
	tc, ok := c.(*tls.Conn)
	if !ok || !d.moves {
		return c
	}
	enclosed := sockets.OverTLS(tc)
	if t := sockets.TrackOf(enclosed); t != nil && enclosed != c {
		d.s.begin(c, t)
	}
	return enclosed
}

// sessionOf returns the connection as the hooks know it: the *tls.Conn that was accepted
// here, or c.
func sessionOf(c net.Conn) net.Conn {
	if over, ok := c.(*sockets.TLSConn); ok {
		return over.Session()
	}
	return c
}
