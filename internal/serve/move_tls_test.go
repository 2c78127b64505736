//go:build linux

package serve

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/control"
	"github.com/julofinance/grace/v3/internal/sockets"
	"github.com/julofinance/grace/v3/internal/testing/logtest"
	"github.com/julofinance/grace/v3/internal/testing/tlstest"
	"github.com/julofinance/grace/v3/internal/testing/wait"
)

// A tlsWorld has the configurations of two servers, and of a client that trusts both.
type tlsWorld struct {
	old, new, client *tls.Config
	byListener       bool // TLS is done by a listener of the program
}

// newTLSWorld gives servers with different certificates for the same name.
func newTLSWorld(t testing.TB) *tlsWorld {
	t.Helper()
	roots := x509.NewCertPool()
	w := &tlsWorld{client: &tls.Config{RootCAs: roots, ServerName: "a.test", MinVersion: tls.VersionTLS13}}
	for _, config := range []**tls.Config{&w.old, &w.new} {
		c := tlstest.Issue(t, x509.Certificate{DNSNames: []string{"a.test"}, IsCA: true}, nil)
		roots.AddCert(c.Leaf)
		*config = &tls.Config{Certificates: []tls.Certificate{c}}
	}
	return w
}

// over makes the two sides servers of w, whose connections move.
func (w *tlsWorld) over(h func(side string) http.Handler) func(side string) http.Handler {
	return func(side string) http.Handler {
		config := map[string]*tls.Config{"old": w.old, "new": w.new}[side]
		c := configured{
			Handler:   h(side),
			configure: func(srv *http.Server) { srv.TLSConfig = config },
			host:      func(h *Host) { h.MoveTLS = true },
		}
		if w.byListener && config != nil {
			c.configure = func(*http.Server) {}
			c.wrap = func(ln net.Listener) net.Listener { return tls.NewListener(ln, config) }
		}
		return c
	}
}

// ways runs a test with servers that do TLS by HTTPS, and by a listener of the program.
func ways(t *testing.T, name string, f func(t *testing.T, byListener bool)) {
	t.Run(name, func(t *testing.T) { f(t, false) })
	t.Run(name+", by a listener", func(t *testing.T) { f(t, true) })
}

// dialTLS gives a client whose handshake is over.
func (p *couple) dialTLS(config *tls.Config) *tls.Conn {
	p.t.Helper()
	c := tls.Client(p.dial(), config)
	if err := c.Handshake(); err != nil {
		p.t.Fatal(err)
	}
	return c
}

func (p *couple) askTLS(config *tls.Config) (*tls.Conn, *bufio.Reader) {
	p.t.Helper()
	c := p.dialTLS(config)
	r := bufio.NewReader(c)
	wantAnswer(p.t, c, r, "", "old")
	return c, r
}

// saysTLS answers with the side's name and what Request.TLS says.
func saysTLS(side string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		chains := 0
		if r.TLS != nil {
			chains = len(r.TLS.VerifiedChains)
			fmt.Fprintf(w, "%s %s %q chains=%d complete=%v", side, tls.VersionName(r.TLS.Version), r.TLS.ServerName, chains, r.TLS.HandshakeComplete)
		}
	})
}

func TestMoveTLS(t *testing.T) {
	ca := tlstest.Issue(t, x509.Certificate{IsCA: true, KeyUsage: x509.KeyUsageCertSign}, nil)
	cas := x509.NewCertPool()
	cas.AddCert(ca.Leaf)
	asClient := tlstest.Issue(t, x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, &ca)
	verify := func(c *tls.Config) { c.ClientAuth, c.ClientCAs = tls.RequireAndVerifyClientCert, cas }
	for _, c := range []struct {
		name   string
		change func(w *tlsWorld)
		says   string
		https  bool // by HTTPS only
	}{
		{"one name", func(w *tlsWorld) {}, `TLS 1.3 "a.test" chains=0 complete=true`, false},
		{"no name", func(w *tlsWorld) {
			w.client.ServerName, w.client.InsecureSkipVerify = "", true
		}, `TLS 1.3 "" chains=0 complete=true`, false},
		{"a client certificate", func(w *tlsWorld) {
			verify(w.old)
			verify(w.new)
			w.client.Certificates = []tls.Certificate{asClient}
		}, `TLS 1.3 "a.test" chains=1 complete=true`, true},
		{"the new certificate by a function", func(w *tlsWorld) {
			cert := w.new.Certificates[0]
			w.new = &tls.Config{GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
				if h.ServerName != "a.test" || h.Conn == nil {
					return nil, fmt.Errorf("asked for %q", h.ServerName)
				}
				return &cert, nil
			}}
		}, `TLS 1.3 "a.test" chains=0 complete=true`, false},
		{"another suite", func(w *tlsWorld) { w.client.CurvePreferences = []tls.CurveID{tls.CurveP256} }, `TLS 1.3 "a.test" chains=0 complete=true`, false},
	} {
		ways(t, c.name, func(t *testing.T, byListener bool) {
			if byListener && c.https {
				return
			}
			w := newTLSWorld(t)
			w.byListener = byListener
			c.change(w)
			p := newCouple(t, w.over(saysTLS))
			p.runOld()
			p.runNew()
			conn := p.dialTLS(w.client)
			r := bufio.NewReader(conn)
			wantAnswer(t, conn, r, "", "old "+c.says)
			fresh := p.dialTLS(w.client) // has asked for nothing yet
			_, done := p.drain()
			wait.For(t, done, "the connections to move")
			wantAnswer(t, conn, r, "", "new "+c.says)
			wantAnswer(t, fresh, bufio.NewReader(fresh), "", "new "+c.says)
			if n := p.mover.Count(); n != 2 {
				t.Errorf("%d connections moved, want 2", n)
			}
		})
	}
}

// logged lets a host log to a buffer.
func logged(h *Host) *logtest.Buffer {
	l := logtest.New(func(slog.Record) {})
	h.Log = slog.New(l)
	h.Socks.Log = h.Log
	return l.Buffer
}

// What the new process can't serve, or the old one can't take out, is served by the old
// one, over the same TLS, and ends there with Connection: close.
func TestTLSThatStays(t *testing.T) {
	for _, c := range []struct {
		name     string
		change   func(w *tlsWorld)
		set      func(p *couple)
		says     string // in a log line of one of the two
		shaken   string // that in place of says, if a handshake is tried; empty: the same
		comeBack bool   // it was offered, and is served anew
	}{
		{name: "the self-check fails", set: func(p *couple) {
			p.old.u.tls.check = func() error { return errors.New("crypto/tls is another") }
		}, says: `msg="grace: no TLS connection is moved, they are finished here" err="crypto/tls is another"`},
		{name: "another name", change: func(w *tlsWorld) {
			w.new.Certificates[0] = tlstest.Issue(t, x509.Certificate{DNSNames: []string{"b.test"}}, nil)
		}, says: "a TLS connection that was to be moved here can't be served", comeBack: true},
		{name: "the new process asks for client certificates", change: func(w *tlsWorld) {
			w.new.ClientAuth = tls.RequireAnyClientCert
		}, says: "this configuration requires one", shaken: "client didn't provide a certificate", comeBack: true},
		{name: "a function of the new one panics", change: func(w *tlsWorld) {
			w.new.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { panic("no config") }
		}, says: "no config", comeBack: true},
		{name: "the new one serves TLS 1.2", change: func(w *tlsWorld) { w.new.MaxVersion = tls.VersionTLS12 }, says: "MaxVersion", shaken: "unsupported versions", comeBack: true},
		{name: "TLS 1.2", change: func(w *tlsWorld) {
			w.client.MinVersion, w.client.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
		}},
		{name: "the new one is plaintext", change: func(w *tlsWorld) { w.new = nil }},
		{name: "it has a client certificate", change: func(w *tlsWorld) {
			w.old.ClientAuth, w.client.Certificates = tls.RequestClientCert, w.new.Certificates
			if w.byListener {
				w.new.ClientAuth = tls.RequestClientCert
			}
		}, says: "this configuration asks for none", shaken: "can't be verified anew", comeBack: true},
		{name: "the new one does not want them", set: func(p *couple) { p.new.l.Take("") }, comeBack: true},
	} {
		ways(t, c.name, func(t *testing.T, byListener bool) {
			w := newTLSWorld(t)
			if w.byListener = byListener; byListener && c.shaken != "" {
				c.says = c.shaken
			}
			if c.change != nil {
				c.change(w)
			}
			p := newCouple(t, w.over(saysSide))
			logs := []*logtest.Buffer{logged(p.old.u.Host), logged(p.new.u.Host)}
			if c.set != nil {
				c.set(p)
			}
			p.runOld()
			p.runNew()
			conn, r := p.askTLS(w.client)
			wait.For(t, p.old.seen, "the connection")
			d, done := p.drain()
			if c.comeBack {
				wait.For(t, p.old.seen, "the connection to come back")
			} else {
				p.await("the drain", func() bool { return p.old.http.draining.Load() == d && !p.old.http.begun().IsZero() })
			}
			req, _ := http.NewRequest("GET", "http://a.test/", nil)
			req.Write(conn)
			resp, err := http.ReadResponse(r, req)
			if err != nil {
				t.Fatal(err)
			}
			if body, _ := io.ReadAll(resp.Body); string(body) != "old" || !resp.Close {
				t.Errorf("the answer is %q, Connection: close %v; want old, and close", body, resp.Close)
			}
			if _, err := r.ReadByte(); err != io.EOF {
				t.Errorf("after the answer: %v, want close_notify", err)
			}
			wait.For(t, done, "the drain to end")
			if n := p.mover.Count(); n != 0 {
				t.Errorf("%d connections moved, want none", n)
			}
			all := slices.Concat(logs[0].Lines(), logs[1].Lines())
			all = slices.DeleteFunc(all, func(s string) bool { return s == "" })
			if c.says == "" && len(all) > 0 || c.says != "" && (len(all) != 1 || !strings.Contains(all[0], c.says)) {
				t.Errorf("the log has %q, want one line with %q", all, c.says)
			}
		})
	}
}

// The new process takes its time to find out whether it has a certificate: the old one
// loses patience, serves on, and what the new one finds out does not matter any more.
func TestNewIsSlowToCover(t *testing.T) {
	w := newTLSWorld(t)
	asked, answer := make(chan struct{}, 1), make(chan struct{})
	w.new.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		asked <- struct{}{}
		<-answer
		return nil, nil
	}
	p := newCouple(t, w.over(saysSide))
	p.mover.Patience = 50 * time.Millisecond
	p.runOld()
	p.runNew()
	c, r := p.askTLS(w.client)
	wait.For(t, p.old.seen, "the connection")
	_, done := p.drain()
	wait.For(t, asked, "the new process to look for a certificate")
	wait.For(t, p.old.seen, "the connection to come back")
	close(answer)
	p.await("the new process to let go", func() bool { return len(p.new.l.Live.All()) == 0 && p.new.l.Gate.IsOpen() && !p.recv.IsHolding() })
	wantAnswer(t, c, r, "", "old")
	if _, err := r.ReadByte(); err != io.EOF {
		t.Errorf("after an answer with Connection: close: got %v, want %v", err, io.EOF)
	}
	wait.For(t, done, "the drain to end")
	select {
	case <-p.new.seen:
		t.Error("the new process serves a connection that is the old one's")
	default:
	}
}

// The old process dies when it has offered a connection: the new one serves it, whether it
// has found out by then that it can, or does so later.
func TestOldDiesWhileTLSMoves(t *testing.T) {
	for _, late := range []bool{false, true} {
		t.Run(fmt.Sprintf("before the new one knows whether it takes it: %v", late), func(t *testing.T) {
			w := newTLSWorld(t)
			answer := make(chan struct{})
			w.new.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { <-answer; return nil, nil }
			if !late {
				close(answer)
			}
			p := newCouple(t, w.over(saysSide)) // the old one reads nothing
			c, r := p.askTLS(w.client)
			p.drain()
			p.take()
			if !late {
				if m, err := p.old.ch.Next(); err != nil || m.Type != sockets.MsgTook {
					t.Fatalf("message %q, error %v; want one that it is taken", m.Type, err)
				}
			}
			p.old.ch.Close()
			ended := make(chan struct{})
			p.new.ch.Run(func(control.Message) {}, func(error) { p.recv.OnEnd(); close(ended) })
			wait.For(t, ended, "the old process's end to be seen")
			if late {
				close(answer)
			}
			wantAnswer(t, c, r, "", "new")
		})
	}
}

// The program closes the writing half of a connection while it is idle: it can't be taken
// out of crypto/tls, and ends.
func TestTLSThatCannotBeTakenOut(t *testing.T) {
	w := newTLSWorld(t)
	over := w.over(saysSide)
	p := newCouple(t, func(side string) http.Handler {
		c := over(side).(configured)
		if side == "old" {
			configure := c.configure
			c.configure = func(srv *http.Server) {
				configure(srv)
				srv.ConnState = func(c net.Conn, s http.ConnState) {
					if s == http.StateIdle {
						c.(*tls.Conn).CloseWrite()
					}
				}
			}
		}
		return c
	})
	p.runOld()
	p.runNew()
	_, r := p.askTLS(w.client)
	if _, err := r.ReadByte(); err != io.EOF {
		t.Errorf("after close_notify: %v", err)
	}
	_, done := p.drain()
	wait.For(t, p.old.seen, "the connection")
	wait.For(t, p.old.seen, "the connection to come back")
	p.old.l.Live.All()[0].Cut()
	wait.For(t, done, "the drain to end")
	if n := p.mover.Count(); n != 0 {
		t.Errorf("%d connections moved, want none", n)
	}
}

// TestMoveTLSWithoutKeepAlives: see TestMoveWithoutKeepAlives.
func TestMoveTLSWithoutKeepAlives(t *testing.T) {
	w := newTLSWorld(t)
	over := w.over(saysSide)
	p := newCouple(t, func(side string) http.Handler {
		c := over(side).(configured)
		configure := c.configure
		c.configure = func(srv *http.Server) {
			configure(srv)
			srv.SetKeepAlivesEnabled(side == "old")
		}
		return c
	})
	p.runOld()
	p.runNew()
	c, r := p.askTLS(w.client)
	_, done := p.drain()
	wait.For(t, done, "the connection to move")
	wantAnswer(t, c, r, "", "new")
	if _, err := r.ReadByte(); err != io.EOF {
		t.Errorf("after the answer: got %v, want %v", err, io.EOF)
	}
}

// The hooks of a server see a *tls.Conn where it was accepted, with our connection below
// it, and one that can be hijacked, all as without MoveTLS.
func TestHooksOverTLS(t *testing.T) {
	w := newTLSWorld(t)
	type key struct{}
	states := map[string]chan string{"old": make(chan string, 100), "new": make(chan string, 100)}
	over := w.over(func(side string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/hijack" {
				fmt.Fprintf(w, "%v", r.Context().Value(key{}))
				return
			}
			c, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			fmt.Fprint(c, "hijacked\n")
			c.Close()
		})
	})
	p := newCouple(t, func(side string) http.Handler {
		c := over(side).(configured)
		configure := c.configure
		c.configure = func(srv *http.Server) {
			configure(srv)
			srv.ConnState = func(c net.Conn, s http.ConnState) { states[side] <- fmt.Sprintf("%v %T", s, c) }
			srv.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
				below := c.(interface{ NetConn() net.Conn }).NetConn()
				return context.WithValue(ctx, key{}, fmt.Sprintf("%T %T", c, below))
			}
		}
		return c
	})
	p.runOld()
	p.runNew()
	c := p.dialTLS(w.client)
	r := bufio.NewReader(c)
	wantAnswer(t, c, r, "", "*tls.Conn *sockets.TCPConn")
	_, done := p.drain()
	wait.For(t, done, "the connection to move")
	wantAnswer(t, c, r, "", "*sockets.TLSConn *sockets.TCPConn")
	fmt.Fprint(c, "GET /hijack HTTP/1.1\r\nHost: a.test\r\n\r\n")
	if line, err := r.ReadString('\n'); line != "hijacked\n" {
		t.Errorf("from the hijacked connection: %q, %v", line, err)
	}
	if _, err := r.ReadByte(); err != io.EOF {
		t.Errorf("its end: %v, want %v", err, io.EOF)
	}
	// In which order one server says "closed" and the other "new" is not said anywhere.
	for side, want := range map[string][]string{
		"old": {"new *tls.Conn", "active *tls.Conn", "idle *tls.Conn", "closed *tls.Conn"},
		"new": {"new *sockets.TLSConn", "active *sockets.TLSConn", "idle *sockets.TLSConn", "active *sockets.TLSConn", "hijacked *sockets.TLSConn"},
	} {
		for _, want := range want {
			if got := wait.For(t, states[side], side+": "+want); got != want {
				t.Fatalf("ConnState of %s: got %q, want %q", side, got, want)
			}
		}
	}
	p.await("no connection to be left", func() bool { return len(p.new.l.Live.All()) == 0 })
}

// Code of the program that has kept the *tls.Conn writes to it while the connection is on
// its way: nothing of that reaches the client, since the new process seals the same number.
func TestNothingIsWrittenWhileTLSMoves(t *testing.T) {
	w := newTLSWorld(t)
	p := newCouple(t, w.over(saysSide))
	c, r := p.askTLS(w.client)
	moving := wait.For(t, p.old.seen, "the connection").(*tls.Conn)
	_, done := p.drain()
	p.awaitMoves(1) // the channel is not read yet
	if _, err := moving.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Write: %v, want %v", err, net.ErrClosed)
	}
	moving.Close()
	p.runOld()
	p.runNew()
	wait.For(t, done, "the connection to move")
	wantAnswer(t, c, r, "", "new")
}

// The new process dies when it has received a connection, and the upgrade is rolled back:
// the old one serves it on, as often as the client asks, until the next one takes it.
func TestTLSIsRolledBack(t *testing.T) {
	w := newTLSWorld(t)
	p := newCouple(t, w.over(saysSide))
	p.runOld()
	c, r := p.askTLS(w.client)
	wait.For(t, p.old.seen, "the connection")
	d, done := p.drain()
	p.awaitWritten()
	p.new.ch.Close()
	wait.For(t, p.old.seen, "the connection to come back")
	d.cancel()
	wait.For(t, done, "the drain to end")
	for range 3 {
		wantAnswer(t, c, r, "", "old")
	}
	if n := p.mover.Count(); n != 0 {
		t.Errorf("%d connections moved, want none", n)
	}
}
