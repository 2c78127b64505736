//go:build unix

package grace

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/serve"
	"github.com/julofinance/grace/v3/internal/sockets"
	"github.com/julofinance/grace/v3/internal/testing/tlstest"
)

// isClosed reports whether the channel is closed.
func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// TestDrainingEndsStreams: a handler whose answer never ends hears of the stop by the
// context of its request, by whatever protocol that has come.
func TestDrainingEndsStreams(t *testing.T) {
	cert, trust := tlstest.Certificate(t)
	for name, c := range map[string]struct {
		proto     string
		protocols func(p *http.Protocols)
		overTLS   bool
		bound     bool // TLSNextProto is set: another server serves each protocol
	}{
		"HTTP/1":        {"HTTP/1.1", func(p *http.Protocols) { p.SetHTTP1(true) }, false, false},
		"HTTP/1, TLS":   {"HTTP/1.1", func(p *http.Protocols) { p.SetHTTP1(true) }, true, false},
		"HTTP/2":        {"HTTP/2.0", func(p *http.Protocols) { p.SetUnencryptedHTTP2(true) }, false, false},
		"HTTP/2, TLS":   {"HTTP/2.0", func(p *http.Protocols) { p.SetHTTP2(true) }, true, false},
		"HTTP/2, bound": {"HTTP/2.0", func(p *http.Protocols) { p.SetUnencryptedHTTP2(true) }, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			u, ln := newSolo(t, IdleGrace(10*time.Millisecond))
			srv := &http.Server{
				Protocols: new(http.Protocols), TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}},
				BaseContext: func(net.Listener) context.Context { return t.Context() }, // the program's own
				Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					draining := Draining(r.Context())
					if isClosed(draining) {
						t.Error("it drains before the stop")
					}
					io.WriteString(w, r.Proto)
					http.NewResponseController(w).Flush()
					<-draining
					io.WriteString(w, " goodbye")
				}),
			}
			srv.Protocols.SetHTTP1(true)
			c.protocols(srv.Protocols)
			if c.bound {
				srv.TLSNextProto = map[string]func(*http.Server, *tls.Conn, http.Handler){"x": nil}
			}
			scheme := "http"
			if c.overTLS {
				scheme = "https"
				u.HTTPS(srv, ln, "", "")
			} else {
				u.HTTP(srv, ln)
			}
			ran := make(chan error, 1)
			go func() { ran <- u.Run(context.Background()) }()
			tr := &http.Transport{TLSClientConfig: trust.Clone(), Protocols: new(http.Protocols)}
			c.protocols(tr.Protocols)
			client := &http.Client{Timeout: limit, Transport: tr}
			defer client.CloseIdleConnections()
			resp, err := client.Get(scheme + "://" + ln.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if _, err := io.ReadFull(resp.Body, make([]byte, len(c.proto))); err != nil || resp.Proto != c.proto {
				t.Fatalf("the answer begins with %s, error %v; want %s", resp.Proto, err, c.proto)
			}
			if err := u.Shutdown(t.Context()); err != nil {
				t.Errorf("Shutdown: %v", err)
			}
			if rest, err := io.ReadAll(resp.Body); err != nil || string(rest) != " goodbye" {
				t.Errorf("the stream ends with %q, error %v", rest, err)
			}
			if err := receive(t, ran, "Run"); err != nil {
				t.Errorf("Run: %v", err)
			}
		})
	}
}

// TestDrainingAfterRollBack: it is as if the drain had not been.
func TestDrainingAfterRollBack(t *testing.T) {
	h := newHouse(t, func(g *generation) error { return g.Ready() })
	h.opts = func(int) []Option { return []Option{Probation(0)} }
	g := h.first()
	before := g.Draining()
	if isClosed(before) {
		t.Error("it is closed before any upgrade")
	}
	slow := &slowDrainer{begun: make(chan *serve.Drain, 9), notice: make(chan struct{}, 9)}
	next := g.toDrain(slow, slow.begun)
	receive(t, before, "the drain")
	if !isClosed(g.Draining()) {
		t.Error("Draining is open while the process drains")
	}
	if isClosed(next.Draining()) {
		t.Error("the new process drains")
	}
	next.die()
	g.awaitEither(resuming, serving)
	if isClosed(g.Draining()) {
		t.Error("it is closed after the roll back")
	}
	if !isClosed(before) {
		t.Error("a closed channel is open again")
	}
	slow.notice <- struct{}{} // of the drain that was called off
	g.await(serving)
	again := g.Draining()
	slow.notice <- struct{}{}
	g.askStop()
	receive(t, again, "the last drain")
	receive(t, g.Done(), "Done")
}

// TestDrainingIsOpenBeforeTheGates: after a roll back the first request that is accepted
// finds Draining open.
func TestDrainingIsOpenBeforeTheGates(t *testing.T) {
	u, ln := newSolo(t)
	if err := u.Ready(); err != nil {
		t.Fatal(err)
	}
	u.host.SetDraining(true)
	u.socks.Yield(u.socks.Snapshot(), []int{0})
	l := ln.(*sockets.Listener)
	closed := make(chan bool, 9)
	l.Gate.Watch(func() {
		if l.Gate.IsOpen() {
			closed <- isClosed(u.Draining())
		}
	})
	u.post(func() { performer{u}.reopenGates() })
	if receive(t, closed, "the gates to open") {
		t.Error("Draining is closed when the gates open")
	}
	u.askStop()
	receive(t, u.Done(), "Done")
}

// TestDrainingOfOtherContexts: it never comes.
func TestDrainingOfOtherContexts(t *testing.T) {
	if c := Draining(t.Context()); c != nil {
		t.Errorf("Draining of a context that is no request's: %v, want nil", c)
	}
}
