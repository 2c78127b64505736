package sockets

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/julofinance/grace/v3/internal/tls13"
)

// A TLS connection moves with the keys of its TLS: see package tls13. Whether it is
// idle can only be seen between the server and TLS, where a Read that waits shows
// how much of the server's buffer is free; below TLS it shows crypto/tls's own
// buffer. So the server is given a TLSConn, which calls the Track of the connection
// below TLS as a TCPConn does, and that one lets TLS pass:
//
//	net/http -> TLSConn -> *tls.Conn or *tls13.Conn -> TCPConn -> net.TCPConn
//	               |                                      |
//	               +---------------> Track <--------------+

// ProtocolTLS is the protocol that a server of net/http takes that serves TLS.
const ProtocolTLS = "http/1.1+tls"

// A TLSConn is a connection over TLS 1.3, its handshake over, that can be moved.
//
// Its methods are those that net/http calls. HandshakeContext is none of them: that of
// Go 1.27 would call it.
type TLSConn struct {
	session net.Conn // a *tls.Conn, or a *tls13.Conn if it was moved before
	tcp     *TCPConn // below it
	left    *departed
}

// A departed is what a connection has left behind whose TLS was taken out, until it is
// known whether it stays here after all.
type departed struct {
	state tls13.State
	told  tls.ConnectionState
}

// A stater is a *tls.Conn, a *tls13.Conn or a TLSConn.
type stater interface {
	ConnectionState() tls.ConnectionState
}

// The modes of a TCPConn that may have TLS above it. They are a Track's below.
const (
	noTLS   uint32 = iota // a TLSConn is not, or not yet, above it
	openTLS               // TLS reads and writes as if there were no Track
	// shutTLS: the TLS that was above it is elsewhere. What crypto/tls may still write
	// must not reach the client: it would be sealed with a number that is used again.
	shutTLS
)

// OverTLS returns what a server is to be given of c, whose handshake is over: a
// TLSConn, or c itself if it could not be moved anyway. No Read or Write of c is under
// way.
func OverTLS(c *tls.Conn) net.Conn {
	tcp, ok := c.NetConn().(*TCPConn)
	if cs := c.ConnectionState(); !ok || !tls13.Movable(&cs) {
		return c
	}
	return newTLSConn(c, tcp)
}

func newTLSConn(session net.Conn, tcp *TCPConn) *TLSConn {
	c := &TLSConn{session: session, tcp: tcp}
	t := &tcp.Track
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ownDetour()
	t.Detour.tls = c
	t.origin.set(originTLS)
	t.progress, t.full = progressNone, 0 // what was read so far was the handshake
	t.below.Store(openTLS)
	return c
}

// Session returns the *tls.Conn of a connection that was accepted here, and else c; also
// if it has come back: for a program that has seen its end it is another one.
func (c *TLSConn) Session() net.Conn {
	if s, ok := c.session.(*tls.Conn); ok && c.under() == c.tcp {
		return s
	}
	return c
}

// under returns the connection that TLS reads and writes. It is tcp, but for a connection
// that has come back with its TLS untouched: then tcp, with a Track that begins anew, has
// taken its place for all else.
func (c *TLSConn) under() *TCPConn {
	return c.session.(interface{ NetConn() net.Conn }).NetConn().(*TCPConn)
}

// Read reads what TLS has decrypted.
func (c *TLSConn) Read(p []byte) (int, error) { return c.tcp.Track.read(c.session, p) }

// Write writes over TLS.
func (c *TLSConn) Write(p []byte) (int, error) {
	if c.tcp.Track.muted {
		return c.tcp.Track.swallow(p)
	}
	return c.session.Write(p)
}

// Close ends TLS and the connection, or moves it.
func (c *TLSConn) Close() error {
	t := &c.tcp.Track
	t.mu.Lock()
	passes := t.life.isOpen() && !t.muted
	t.mu.Unlock()
	if !passes {
		return t.close()
	}
	if c.under() == c.tcp {
		return c.session.Close() // which closes the connection below it
	}
	c.tcp.SetWriteDeadline(time.Now().Add(closePatience))
	c.session.Close()
	return t.close()
}

// closePatience is how long close_notify may take, as in crypto/tls.
const closePatience = 5 * time.Second

// CloseWrite sends close_notify.
func (c *TLSConn) CloseWrite() error {
	if c.under() != c.tcp {
		c.tcp.SetWriteDeadline(time.Now().Add(closePatience))
	}
	if s, ok := c.session.(interface{ CloseWrite() error }); ok {
		return s.CloseWrite()
	}
	return errors.ErrUnsupported // not reached
}

// ConnectionState tells of the handshake; net/http makes Request.TLS of it.
func (c *TLSConn) ConnectionState() tls.ConnectionState {
	return c.session.(stater).ConnectionState()
}

// NetConn is the connection below TLS.
func (c *TLSConn) NetConn() net.Conn { return c.tcp }

func (c *TLSConn) LocalAddr() net.Addr  { return c.tcp.LocalAddr() }
func (c *TLSConn) RemoteAddr() net.Addr { return c.tcp.RemoteAddr() }

func (c *TLSConn) SetDeadline(t time.Time) error      { return c.tcp.SetDeadline(t) }
func (c *TLSConn) SetReadDeadline(t time.Time) error  { return c.tcp.SetReadDeadline(t) }
func (c *TLSConn) SetWriteDeadline(t time.Time) error { return c.tcp.SetWriteDeadline(t) }

// readBelow is the Read of TLS.
func (c *TCPConn) readBelow(p []byte) (int, error) {
	if c.Track.below.Load() == shutTLS {
		return 0, net.ErrClosed
	}
	return c.TCPConn.Read(p)
}

// writeBelow is a Write of TLS, or one during the prelude.
func (c *TCPConn) writeBelow(p []byte) (int, error) {
	switch c.Track.below.Load() {
	case openTLS:
		return c.TCPConn.Write(p)
	case shutTLS:
		return 0, net.ErrClosed
	}
	return c.Track.swallow(p)
}

// overTLS returns the TLSConn above the connection; nil if there is none.
func (t *Track) overTLS() *TLSConn {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.Detour.tls
}

// leave takes the TLS out of the connection, and returns it for a message. It is shut
// before that: what crypto/tls might seal from now on goes nowhere. If there is an
// error, and left is nil, then nothing has changed.
func (c *TLSConn) leave() (encoded []byte, err error) {
	gone := &departed{told: c.ConnectionState()}
	under := &c.under().Track
	under.below.Store(shutTLS)
	switch s := c.session.(type) {
	case *tls.Conn:
		gone.state, err = tls13.Extract(s)
	case *tls13.Conn:
		gone.state, err = s.Extract()
	}
	if err != nil {
		under.below.Store(openTLS)
		return nil, err
	}
	c.left = gone
	return gone.state.Encode()
}

// comeBack serves on a connection that was on its way to the new process: see TakeBack.
func (c *TLSConn) comeBack(l *Listener, stays *Mover) (*TLSConn, error) {
	tcp := Tracked(c.tcp.Track.Inner, l, nil, &c.tcp.Track, stays).(*TCPConn)
	session := c.session
	if c.left != nil {
		s, err := tls13.New(tcp, &c.left.state, c.left.told)
		if err != nil {
			l.Live.remove(&tcp.Track, false)
			return nil, err
		}
		session = s
	}
	return newTLSConn(session, tcp), nil
}

// forgetTLS wipes what is left of a connection that is the new process's.
func (t *Track) forgetTLS() {
	if c := t.overTLS(); c != nil && c.left != nil {
		c.left.state.Wipe()
	}
}

// A Cover reports why a server does not serve on the connection c, which has this TLS,
// and else what its ConnectionState is to say. It may wait, but not longer than ctx
// lasts, and calls neither Read nor Write.
type Cover func(ctx context.Context, c net.Conn, s *tls13.State) (tls.ConnectionState, error)

// Cover sets what is asked before a TLS connection is moved to l.
func (l *Listener) Cover(f Cover) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cover = f
}

func (l *Listener) covers(ctx context.Context, c net.Conn, s *tls13.State) (tls.ConnectionState, error) {
	l.mu.Lock()
	f := l.cover
	l.mu.Unlock()
	if f == nil {
		return tls.ConnectionState{}, fmt.Errorf("the server on %v serves no TLS", l.addr)
	}
	return f(ctx, c, s)
}
