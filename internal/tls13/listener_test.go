package tls13

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"testing"
	"time"
)

// A named listener is below a listener of crypto/tls, and never accepts.
type named struct{ net.Listener }

func TestThrough(t *testing.T) {
	below := &named{}
	over := tls.NewListener(below, serverConfig())
	for name, ln := range map[string]net.Listener{
		"none":      nil,
		"another":   below,
		"a wrapper": struct{ net.Listener }{over},
		"a pointer": &named{over},
		"nothing":   tls.NewListener(nil, serverConfig()),
	} {
		if l := Through(ln); l != nil {
			t.Errorf("%s: was seen through: %+v", name, l)
		}
	}
	l := Through(over)
	if l == nil || l.Below != below {
		t.Fatalf("a listener of crypto/tls was seen as %+v", l)
	}
	ours, theirs := net.Pipe()
	defer ours.Close()
	defer theirs.Close()
	served, err := l.Server(theirs)
	check(t, err)
	done := make(chan error, 1)
	go func() { done <- served.Handshake() }()
	client := tls.Client(ours, clientConfig())
	check(t, client.Handshake())
	check(t, <-done)
	if served.NetConn() != theirs || client.ConnectionState().NegotiatedProtocol != protoHTTP1 {
		t.Errorf("%+v", client.ConnectionState())
	}
}

func TestListenerCovers(t *testing.T) {
	mine, other := worldCert(), world().issue(t, "other.test")
	wrong := errors.New("no such name")
	of := func(change func(*tls.Config), certs ...tls.Certificate) *tls.Config {
		c := &tls.Config{Certificates: certs}
		if change != nil {
			change(c)
		}
		return c
	}
	noSNI := func(s *State) { s.ServerName = "" }
	for name, c := range map[string]struct {
		state  func(*State)
		config *tls.Config
		want   string // of the error; empty: covered
	}{
		"the same":       {nil, of(nil, mine), ""},
		"another name":   {nil, of(nil, other), "valid for other.test, not " + testName},
		"one of several": {nil, of(nil, other, mine), ""},
		"no SNI":         {noSNI, of(nil, other), ""},
		"no certificate": {noSNI, of(nil), "no certificates configured"},
		"TLS 1.2":        {nil, of(func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }, mine), "version"},
		"HTTP/1 and 2":   {nil, of(func(c *tls.Config) { c.NextProtos = []string{"h2", protoHTTP1} }, mine), ""},
		"HTTP/2, which net/http takes for HTTP/1 then": {nil, of(func(c *tls.Config) { c.NextProtos = []string{"h2"} }, mine), ""},
		"a protocol of its own":                        {nil, of(func(c *tls.Config) { c.NextProtos = []string{"foo"} }, mine), "application protocol"},
		"a client certificate may be":                  {nil, of(func(c *tls.Config) { c.ClientAuth = tls.VerifyClientCertIfGiven }, mine), ""},
		"it must be":                                   {nil, of(func(c *tls.Config) { c.ClientAuth = tls.RequireAnyClientCert }, mine), "certificate"},
		"it is there": {func(s *State) { s.Certificates = world().issue(t).Certificate }, of(func(c *tls.Config) { c.ClientAuth = tls.RequestClientCert }, mine),
			"can't be verified anew"},
		"VerifyConnection": {nil, of(func(c *tls.Config) { c.VerifyConnection = func(tls.ConnectionState) error { return wrong } }, mine), "no such name"},
		"GetConfigForClient": {nil, of(func(c *tls.Config) {
			c.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
				if h.ServerName != testName || h.Conn.RemoteAddr().String() != "client" {
					return nil, wrong
				}
				return of(nil, mine), nil
			}
		}, other), ""},
		"it refuses": {nil, of(func(c *tls.Config) {
			c.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return nil, wrong }
		}, mine), "no such name"},
		"it panics": {nil, of(func(c *tls.Config) {
			c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { panic("oh") }
		}), "panics: oh"},
		"a bad state": {func(s *State) { s.ALPN = "h2" }, of(nil, mine), `protocol "h2"`},
	} {
		t.Run(name, func(t *testing.T) {
			s := plainState()
			if c.state != nil {
				c.state(&s)
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			cs, err := Through(tls.NewListener(&named{}, c.config)).Covers(ctx, client{}, &s)
			switch {
			case c.want == "" && err != nil:
				t.Error(err)
			case c.want == "" && (cs.ServerName != s.ServerName || cs.Version != tls.VersionTLS13 || !cs.HandshakeComplete || cs.PeerCertificates != nil):
				t.Errorf("%+v", cs)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
}

// A client has addresses, and nothing else.
type client struct{ net.Conn }

func (client) LocalAddr() net.Addr  { return &net.UnixAddr{Name: "server"} }
func (client) RemoteAddr() net.Addr { return &net.UnixAddr{Name: "client"} }

// A function of the configuration that hangs holds nothing up for longer than asked for.
func TestListenerCoversInTime(t *testing.T) {
	asked, answer := make(chan struct{}), make(chan struct{})
	defer close(answer)
	l := Through(tls.NewListener(&named{}, &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		close(asked)
		<-answer
		return nil, errors.New("too late")
	}}))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	go func() { <-asked; cancel() }()
	s := plainState()
	begun := time.Now()
	if _, err := l.Covers(ctx, client{}, &s); !errors.Is(err, context.Canceled) || time.Since(begun) >= patience {
		t.Errorf("after %v: %v, want %v", time.Since(begun), err, context.Canceled)
	}
}

// BenchmarkListenerCovers is what one connection costs a new process whose TLS is done by
// a listener of the program's.
func BenchmarkListenerCovers(b *testing.B) {
	l := Through(tls.NewListener(&named{}, serverConfig()))
	s := plainState()
	for b.Loop() {
		if _, err := l.Covers(b.Context(), client{}, &s); err != nil {
			b.Fatal(err)
		}
	}
}
