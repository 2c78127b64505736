package tls13

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
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

// A drawn counts how often something random was wanted: at least once in a handshake.
type drawn struct{ n atomic.Int64 }

func (d *drawn) Read(p []byte) (int, error) {
	d.n.Add(1)
	return rand.Read(p)
}

// What the configuration alone answers is asked once; a function of it each time.
func TestListenerCoversOnce(t *testing.T) {
	mine := worldCert()
	get := func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &mine, nil }
	for name, c := range map[string]struct {
		config *tls.Config
		once   bool
	}{
		"certificates":   {&tls.Config{Certificates: []tls.Certificate{mine}}, true},
		"GetCertificate": {&tls.Config{GetCertificate: get}, false},
		"VerifyConnection": {&tls.Config{
			Certificates: []tls.Certificate{mine}, VerifyConnection: func(tls.ConnectionState) error { return nil },
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			var d drawn
			c.config.Rand = &d
			l := Through(tls.NewListener(&named{}, c.config))
			asks := func(change func(*State)) (handshake bool, err error) {
				t.Helper()
				s := plainState()
				if change != nil {
					change(&s)
				}
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				before := d.n.Load()
				_, err = l.Covers(ctx, client{}, &s)
				return d.n.Load() > before, err
			}
			for i := range 3 {
				if shook, err := asks(nil); err != nil || shook != (i == 0 || !c.once) {
					t.Errorf("the same for the %d. time: a handshake %v, error %v", i+1, shook, err)
				}
			}
			for what, change := range map[string]func(*State){
				"no name":       func(s *State) { s.ServerName = "" },
				"no protocol":   func(s *State) { s.ALPN = "" },
				"another curve": func(s *State) { s.Curve = tls.CurveP256 },
			} {
				if shook, err := asks(change); !shook || err != nil {
					t.Errorf("%s: a handshake %v, error %v", what, shook, err)
				}
			}
			for range 2 { // what is refused is asked again
				if shook, err := asks(func(s *State) { s.ServerName = "other.test" }); !shook || err == nil {
					t.Errorf("another name: a handshake %v, error %v", shook, err)
				}
			}
			for i := range 2 * mostCovered {
				l.remember(question{name: strconv.Itoa(i)})
			}
			if n := len(l.covered); n > mostCovered {
				t.Errorf("%d questions are remembered, want %d at most", n, mostCovered)
			}
		})
	}
}

// BenchmarkListenerCovers is what one connection costs a new process whose TLS is done by
// a listener of the program's.
func BenchmarkListenerCovers(b *testing.B) {
	mine := worldCert()
	for name, config := range map[string]*tls.Config{
		"certificates": serverConfig(),
		"a function":   {GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &mine, nil }},
	} {
		b.Run(name, func(b *testing.B) {
			l := Through(tls.NewListener(&named{}, config))
			s := plainState()
			for b.Loop() {
				if _, err := l.Covers(b.Context(), client{}, &s); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
