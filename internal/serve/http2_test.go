//go:build unix

package serve

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/testing/http2test"
	"github.com/julofinance/grace/v3/internal/testing/tlstest"
	"github.com/julofinance/grace/v3/internal/testing/wait"
)

// A rawHTTP2 is a client's connection, of which nothing is known but frames.
type rawHTTP2 struct {
	t  *testing.T
	c  net.Conn
	in *bufio.Reader
}

const (
	frameSettings = 4
	frameGoAway   = 7
)

func dialHTTP2(t *testing.T, addr string) *rawHTTP2 {
	t.Helper()
	c := dialSolo(t, addr)
	// The preface, and a frame of settings without any.
	if _, err := io.WriteString(c, preface+"\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"); err != nil {
		t.Fatal(err)
	}
	h := &rawHTTP2{t, c, bufio.NewReader(c)}
	h.waitFrame(frameSettings)
	return h
}

// waitFrame reads up to a frame of this type.
func (h *rawHTTP2) waitFrame(typ byte) {
	h.t.Helper()
	for {
		var head [9]byte
		if _, err := io.ReadFull(h.in, head[:]); err != nil {
			h.t.Fatalf("waiting for a frame of type %d: %v", typ, err)
		}
		if _, err := io.CopyN(io.Discard, h.in, int64(binary.BigEndian.Uint32(head[:4])>>8)); err != nil {
			h.t.Fatal(err)
		}
		if head[3] == typ {
			return
		}
	}
}

// TestUserShutsHTTP2: a server that speaks HTTP/2 itself, and was shut down by its
// owner, is at its end, and is not asked without end to serve a connection.
func TestUserShutsHTTP2(t *testing.T) {
	srv := &http.Server{Handler: http.NotFoundHandler(), Protocols: new(http.Protocols)}
	srv.Protocols.SetHTTP1(true)
	srv.Protocols.SetUnencryptedHTTP2(true)
	srv.TLSNextProto = map[string]func(*http.Server, *tls.Conn, http.Handler){"x": nil}
	u, ln := newProcess(t, idle(time.Millisecond))
	execute := u.HTTP(srv, ln)
	served := u.run(t, execute)
	defer wait.For(t, u.Done(), "Done")
	defer u.askStop()
	c := dialHTTP2(t, ln.Addr().String())
	if err := srv.Shutdown(canceled()); !errors.Is(err, context.Canceled) && err != nil {
		t.Fatal(err)
	}
	if err := wait.For(t, served, "execute"); !errors.Is(err, http.ErrServerClosed) {
		t.Errorf("execute returns %v, want %v", err, http.ErrServerClosed)
	}
	c.waitFrame(frameGoAway)
	c.waitEnd()
}

func canceled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

func (h *rawHTTP2) waitEnd() {
	h.t.Helper()
	if _, err := io.Copy(io.Discard, h.in); err != nil {
		h.t.Errorf("the connection ended with %v", err)
	}
}

// Every HTTP/2 connection is told to go away: one that was idle when the drain
// began, one that came later, and one of a server whose former drain was rolled
// back. So it is where the user has set TLSNextProto, and the server itself
// speaks HTTP/2. What was registered with RegisterOnShutdown is called once.
func TestGoAway(t *testing.T) {
	for name, bound := range map[string]bool{"free": false, "bound": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			srv := &http.Server{Handler: http.NotFoundHandler(), Protocols: new(http.Protocols)}
			srv.Protocols.SetHTTP1(true)
			srv.Protocols.SetUnencryptedHTTP2(true)
			if bound {
				srv.TLSNextProto = map[string]func(*http.Server, *tls.Conn, http.Handler){"x": nil}
			}
			shut := make(chan struct{}, 9)
			srv.RegisterOnShutdown(func() { shut <- struct{}{} })
			u, s, addr := serveDraining(t, srv)
			s.Resume() // it is called off
			for range 2 {
				idle := dialHTTP2(t, addr)
				if err := u.Socks.OpenGates(); err != nil {
					t.Fatal(err)
				}
				d := NewDrain(nil)
				drained := make(chan Report, 1)
				go func() { drained <- s.Drain(d) }()
				idle.waitFrame(frameGoAway)
				idle.waitEnd()
				late := dialHTTP2(t, addr)
				late.waitFrame(frameGoAway)
				late.waitEnd()
				d.cancel()
				wait.For(t, drained, "the drain that was called off")
				s.Resume()
			}
			if n := len(shut); n != 1 {
				t.Errorf("what was registered with RegisterOnShutdown was called %d times", n)
			}
		})
	}
}

// TestGoAwayLetsBegin: a connection that was opened just before the drain, and on which nothing
// was asked, is not told to go away at once.
func TestGoAwayLetsBegin(t *testing.T) {
	srv := &http.Server{Handler: http.NotFoundHandler(), Protocols: new(http.Protocols)}
	srv.Protocols.SetUnencryptedHTTP2(true)
	u, ln := newProcess(t, idle(time.Hour))
	execute := u.HTTP(srv, ln)
	served := u.run(t, execute)
	defer wait.For(t, served, "execute")
	defer u.askStop()
	c := dialHTTP2(t, ln.Addr().String())
	began := time.Now()
	u.httpServer(srv).goAway(goAwayTime)
	c.waitFrame(frameGoAway)
	if took := time.Since(began); took < lateHTTP2 {
		t.Errorf("GOAWAY has come after %v, want %v at least", took, lateHTTP2)
	}
	c.waitEnd()
}

// TestPostsAreNotLost: a client that sends nothing a second time loses no request while
// the server is drained again and again, with each of the HTTP/2 servers.
func TestPostsAreNotLost(t *testing.T) {
	cert, trusting := tlstest.Certificate(t)
	for _, c := range []struct {
		name           string
		overTLS, bound bool
	}{{"h2c", false, false}, {"TLS", true, false}, {"bound", false, true}} {
		t.Run(c.name, func(t *testing.T) {
			u, ln := newProcess(t)
			srv := &http.Server{
				Protocols: new(http.Protocols), TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}},
				Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if (r.TLS != nil) != c.overTLS {
						t.Errorf("Request.TLS is %v", r.TLS)
					}
					io.Copy(w, r.Body)
				}),
			}
			srv.Protocols.SetHTTP1(true)
			srv.Protocols.SetHTTP2(true)
			srv.Protocols.SetUnencryptedHTTP2(true)
			if c.bound {
				srv.TLSNextProto = map[string]func(*http.Server, *tls.Conn, http.Handler){"x": nil}
			}
			execute := u.HTTP(srv, ln)
			if c.overTLS {
				execute = u.HTTPS(srv, ln, "", "")
			}
			served := u.run(t, execute)
			defer wait.For(t, served, "execute")
			defer u.askStop()
			s := u.httpServer(srv)

			client := http2test.NewClient(func() (net.Conn, error) {
				conn, err := net.DialTimeout("tcp", ln.Addr().String(), wait.Limit)
				if err == nil && c.overTLS {
					config := trusting.Clone()
					config.ServerName, config.NextProtos = "127.0.0.1", []string{"h2"}
					conn = tls.Client(conn, config)
				}
				return conn, err
			})
			defer client.Close()
			const drains = 5
			var asked, drained atomic.Int64
			var workers sync.WaitGroup
			for range 8 {
				workers.Go(func() {
					for drained.Load() < drains && !t.Failed() {
						if got, err := client.Post("/", "one ", "after ", "another"); err != nil || got != "one after another" {
							t.Errorf("answered %q, error %v", got, err)
						}
						asked.Add(1)
					}
				})
			}
			for range drains {
				before := asked.Load()
				wait.Until(t, "some answers", func() bool { return asked.Load() >= before+10 })
				dials := client.Dials()
				d := NewDrain(nil)
				end := make(chan struct{})
				go func() {
					defer close(end)
					s.Drain(d)
				}()
				wait.Until(t, "another connection", func() bool { return t.Failed() || client.Dials() > dials })
				d.cancel()
				wait.For(t, end, "the drain that was called off")
				s.Resume()
				drained.Add(1)
			}
			workers.Wait()
		})
	}
}
