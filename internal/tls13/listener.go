package tls13

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"reflect"
	"sync"
)

// A Listener is one of [tls.NewListener] that was seen through. What it does to a
// connection is known, and the connections below it can be accepted without it. Its
// configuration is not read: a copy of the listener has it, which stands on nothing but
// the connection that it is given.
type Listener struct {
	// Below is what tls.NewListener was given.
	Below net.Listener

	// pure: the configuration calls no function of the program's, so what one connection
	// was shown, another one that asks for the same is shown too.
	pure bool

	mu      sync.Mutex
	copy    net.Listener // stands on next; guarded by mu
	next    handed
	covered map[question]bool // if pure: what was covered before; guarded by mu
}

// A question is what Covers asks the configuration.
type question struct {
	name, alpn string
	curve      tls.CurveID
}

// mostCovered is how many questions are remembered: the names are the clients' choice.
const mostCovered = 1024

// A handed listener gives the one connection that it was given.
type handed struct {
	net.Listener // nil: a listener of crypto/tls calls Accept alone
	conn         net.Conn
}

func (h *handed) Accept() (net.Conn, error) { return h.conn, nil }

// The fields of the type that tls.NewListener returns, in Go 1.25, 1.26 and 1.27.
var listenerFields = []field{{"Listener", "net.Listener", read}, {"config", "*tls.Config", read}}

// Through returns ln as it was seen through; nil if it is not of tls.NewListener itself, or
// that does not build it as this package knows it.
func Through(ln net.Listener) *Listener {
	known := reflect.TypeOf(tls.NewListener(nil, nil))
	if reflect.TypeOf(ln) != known || known.Kind() != reflect.Pointer || reflect.ValueOf(ln).IsNil() {
		return nil
	}
	at, err := locate(known.Elem(), listenerFields)
	if err != nil {
		return nil
	}
	l := &Listener{covered: map[question]bool{}}
	below := reflect.ValueOf(ln).Elem().Field(at["Listener"])
	l.Below, _ = below.Interface().(net.Listener)
	made := reflect.New(known.Elem())
	made.Elem().Set(reflect.ValueOf(ln).Elem())
	made.Elem().Field(at["Listener"]).Set(reflect.ValueOf(&l.next))
	l.copy, _ = made.Interface().(net.Listener)
	probe := &halfPipe{}
	if c, err := l.Server(probe); l.Below == nil || err != nil || c.NetConn() != probe {
		return nil
	}
	l.pure = callsNothing(reflect.ValueOf(ln).Elem().Field(at["config"]))
	return l
}

// callsNothing reports whether no function is set in config, a *tls.Config. The program
// must not change it any more, see [tls.Config].
func callsNothing(config reflect.Value) bool {
	if config.IsNil() {
		return false
	}
	for i := range config.Elem().NumField() {
		if f := config.Elem().Field(i); f.Kind() == reflect.Func && !f.IsNil() {
			return false
		}
	}
	return true
}

// Server returns what the listener would return of a connection that was accepted below
// it. It does not wait for the client.
func (l *Listener) Server(c net.Conn) (*tls.Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.next.conn = c
	defer func() { l.next.conn = nil }()
	served, err := l.copy.Accept()
	if err != nil {
		return nil, fmt.Errorf("tls13: a listener of crypto/tls: %w", err)
	}
	if over, ok := served.(*tls.Conn); ok {
		return over, nil
	}
	return nil, fmt.Errorf("%w: its listener returns a %T", ErrUnknown, served)
}

// Covers is [Covers] for the listener's configuration, which is asked by a handshake: a
// client in memory shows the name, protocol and curve of s, and is to be shown TLS 1.3 and a
// certificate that is valid for the name. A connection with client certificates is
// refused, since their keys would be needed. The functions of the configuration are
// called as in each handshake, with a connection that has the addresses of conn; if there
// are none, one handshake answers for all that ask for the same.
func (l *Listener) Covers(ctx context.Context, conn net.Conn, s *State) (_ tls.ConnectionState, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("tls13: the connection for %q can't be taken: %w", s.ServerName, err)
		}
	}()
	cs, err := s.usable()
	if err != nil {
		return tls.ConnectionState{}, err
	}
	if len(s.Certificates) > 0 {
		return tls.ConnectionState{}, errors.New("the client has shown a certificate, which can't be verified anew by a listener of the program's")
	}
	asked := question{s.ServerName, s.ALPN, s.Curve}
	if l.hasCovered(asked) {
		return cs, nil
	}
	shown, err := l.shake(ctx, conn, s)
	if err != nil {
		return tls.ConnectionState{}, err
	}
	if err := s.named(&tls.Certificate{Leaf: shown.PeerCertificates[0]}); err != nil {
		return tls.ConnectionState{}, err
	}
	l.remember(asked)
	return cs, nil
}

func (l *Listener) hasCovered(q question) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.covered[q]
}

func (l *Listener) remember(q question) {
	if !l.pure {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.covered) >= mostCovered {
		clear(l.covered)
	}
	l.covered[q] = true
}

// shake makes a handshake with the listener, and returns what the client has seen.
func (l *Listener) shake(ctx context.Context, conn net.Conn, s *State) (shown tls.ConnectionState, err error) {
	near, far := net.Pipe()
	ours, theirs := newMemEnd(near, conn), newMemEnd(far, conn)
	defer close(ours.out)
	server, err := l.Server(theirs)
	if err != nil {
		close(theirs.out)
		return shown, err
	}
	config := &tls.Config{
		// It is not the client that is to be convinced: see named.
		InsecureSkipVerify: true,
		ServerName:         s.ServerName, MinVersion: tls.VersionTLS13,
	}
	if s.ALPN != "" {
		config.NextProtos = []string{s.ALPN}
	}
	if s.Curve != 0 {
		config.CurvePreferences = []tls.CurveID{s.Curve}
	}
	served := make(chan error, 1)
	go func() {
		var err error
		defer func() {
			if p := recover(); p != nil {
				err = fmt.Errorf("a function of the TLS configuration panics: %v", p)
			}
			close(theirs.out)
			served <- err
		}()
		err = server.HandshakeContext(ctx)
	}()
	client := tls.Client(ours, config)
	asked := client.HandshakeContext(ctx)
	if asked == nil {
		io.Copy(io.Discard, ours) // session tickets, until the server has judged the client as well
	}
	near.Close()
	select {
	case err = <-served: // says more than the client's
	case <-ctx.Done():
		return shown, ctx.Err() // a function of the configuration may go on
	}
	if err == nil {
		err = asked
	}
	return client.ConnectionState(), err
}

// A memEnd is an end of a net.Pipe whose Write does not wait for the other end to read: a
// server that writes an alert when it has read half of what the client writes would wait
// for ever. It has the addresses of another connection.
type memEnd struct {
	net.Conn
	addrs net.Conn
	out   chan []byte // has room for a handshake; its end closes the connection
}

func newMemEnd(c, addrs net.Conn) *memEnd {
	e := &memEnd{c, addrs, make(chan []byte, 64)}
	go func() {
		for p := range e.out {
			c.Write(p) // an error: the other end has gone, and this one will see that
		}
		c.Close()
	}()
	return e
}

func (e *memEnd) Write(p []byte) (int, error) {
	e.out <- bytes.Clone(p)
	return len(p), nil
}

func (e *memEnd) LocalAddr() net.Addr  { return e.addrs.LocalAddr() }
func (e *memEnd) RemoteAddr() net.Addr { return e.addrs.RemoteAddr() }
