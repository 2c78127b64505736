package load

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// limit is how long a test waits for what must come.
const limit = 15 * time.Second

// serve serves h on a port of its own until the test ends.
func serve(t *testing.T, h http.Handler) (*http.Server, string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h}
	done := make(chan struct{})
	go func() { defer close(done); srv.Serve(ln) }()
	t.Cleanup(func() { srv.Close(); <-done })
	return srv, ln.Addr().String()
}

// until polls the load until cond holds.
func until(t *testing.T, r *Run, what string, cond func(Report) bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(limit); time.Now().Before(end); <-tick.C {
		if cond(r.Snapshot()) {
			return
		}
	}
	t.Fatalf("not within %v: %s\n%v", limit, what, r.Snapshot())
}

// answers reports whether each kind has n answers.
func answers(n int) func(Report) bool {
	return func(rep Report) bool {
		for _, c := range rep.Kinds {
			if c.Answered < n {
				return false
			}
		}
		return true
	}
}

func start(t *testing.T, cfg Config) *Run {
	t.Helper()
	r, err := Start(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Stop() })
	return r
}

func TestHealthyServer(t *testing.T) {
	for _, delay := range []time.Duration{0, 2 * time.Millisecond} {
		t.Run(delay.String(), func(t *testing.T) {
			_, addr := serve(t, Handler())
			r := start(t, Config{Addr: addr, Kinds: Each(2), Delay: delay})
			until(t, r, "two answers to each kind", answers(2))
			wantHealthy(t, r.Stop())
		})
	}
}

func TestTLS(t *testing.T) {
	srv := httptest.NewTLSServer(Handler())
	defer srv.Close()
	roots := x509.NewCertPool()
	roots.AddCert(srv.Certificate())
	r := start(t, Config{
		Addr: srv.Listener.Addr().String(), Kinds: Each(1), Delay: time.Millisecond,
		TLS: &tls.Config{RootCAs: roots, ServerName: "example.com"},
	})
	until(t, r, "an answer to each kind", answers(1))
	wantHealthy(t, r.Stop())
}

func TestUnknownKind(t *testing.T) {
	if _, err := Start(context.Background(), Config{Kinds: map[Kind]int{"nonsense": 1}}); err == nil {
		t.Error("Start took a kind that there is not")
	}
}

func TestContextEndsIt(t *testing.T) {
	_, addr := serve(t, Handler())
	ctx, cancel := context.WithCancel(context.Background())
	r, err := Start(ctx, Config{Addr: addr, Kinds: map[Kind]int{KeepAlive: 1}})
	if err != nil {
		t.Fatal(err)
	}
	until(t, r, "an answer", answers(1))
	cancel()
	r.wg.Wait()
	wantHealthy(t, r.Stop())
}

// hangUp takes the connection away from net/http, writes text, and ends it.
func hangUp(text string, end func(*net.TCPConn)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body) // else the kernel answers with a reset
		c, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err)
		}
		io.WriteString(c, text)
		end(c.(*net.TCPConn))
	}
}

func closed(c *net.TCPConn) { c.Close() }
func abort(c *net.TCPConn)  { c.SetLinger(0); c.Close() }

// TestSeesLosses: a server that loses what it has begun is caught, each way by
// its name.
func TestSeesLosses(t *testing.T) {
	held := make(chan struct{})
	hold := func(c *net.TCPConn) { <-held; c.Close() }
	cases := []struct {
		name    string
		kind    Kind
		reason  string
		handler http.HandlerFunc
	}{
		{"no answer", KeepAlive, "unanswered", hangUp("", closed)},
		{"half a head", KeepAlive, "cut", hangUp("HTTP/1.1 200 O", closed)},
		{"half a body", KeepAlive, "cut", hangUp("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345", closed)},
		{"half a chunk", Chunked, "cut", hangUp("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10\r\n12345", closed)},
		{"a chunk too few", Chunked, "cut", hangUp("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n1\r\n", closed)},
		{"reset", Slow, "reset", hangUp("", abort)},
		{"connection reset", Connect, "reset", hangUp("", abort)},
		{"upload reset", Upload, "reset", hangUp("", abort)},
		{"stream reset", Stream, "reset", hangUp("HTTP/1.1 101 OK\r\n\r\n", abort)},
		{"stream cut", Stream, "cut", hangUp("HTTP/1.1 101 OK\r\n\r\n", closed)},
		{"no end", HalfClose, "timeout", func(w http.ResponseWriter, r *http.Request) {
			say := r.FormValue("say")
			hangUp(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(say), say), hold)(w, r)
		}},
		{"no 100", Expect, "wrong answer", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(417) }},
		{"an error", Trickle, "wrong answer", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(500) }},
		{"another's answer", KeepAlive, "wrong answer", func(w http.ResponseWriter, r *http.Request) { write(w, []byte("hello")) }},
		{"nonsense", Head, "malformed", hangUp("hello\n", closed)},
		{"more than asked for", Head, "wrong answer", hangUp("HTTP/1.1 200 OK\r\n\r\nmore", hold)},
		{"never", NotModified, "timeout", hangUp("", hold)},
		{"part of a pipeline", Pipelined, "unanswered", nil},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			h := c.handler
			if h == nil {
				h = func(w http.ResponseWriter, r *http.Request) {
					if body, _ := io.ReadAll(r.Body); strings.HasPrefix(string(body), string(Pipelined)+"-0-3") {
						panic(http.ErrAbortHandler)
					} else {
						write(w, body)
					}
				}
			}
			srv, addr := serve(t, h)
			srv.ErrorLog = log.New(io.Discard, "", 0)
			cfg := Config{Addr: addr, Kinds: map[Kind]int{c.kind: 1}}
			if c.reason == "timeout" {
				cfg.Limit = 50 * time.Millisecond
			}
			r := start(t, cfg)
			until(t, r, "a loss called "+c.reason, func(rep Report) bool { return rep.Kinds[c.kind].Lost[c.reason] > 0 })
			cfg.Delay = time.Millisecond
			r = start(t, cfg)
			// The client closes the connection after it has counted the loss.
			until(t, r, "the same through a relay, and no first connection", func(rep Report) bool {
				return rep.Kinds[c.kind].Lost[c.reason] > 0 && rep.Kinds[c.kind].Same == 0
			})
			if rep := r.Snapshot(); len(rep.Losses) == 0 {
				t.Errorf("got no loss one by one:\n%v", rep)
			}
		})
	}
	close(held)
}

func TestSeesRefusedConnects(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	cfg := Config{Addr: ln.Addr().String(), Kinds: map[Kind]int{KeepAlive: 1}}
	r := start(t, cfg)
	until(t, r, "a refused connect", func(rep Report) bool { return rep.Kinds[KeepAlive].Lost["refused"] > 0 })
	cfg.Delay = time.Millisecond
	r = start(t, cfg)
	// The connect to the relay works; what follows is seen as a reset.
	until(t, r, "a reset", func(rep Report) bool { return rep.Kinds[KeepAlive].Idle > 0 || rep.Lost() > 0 })
	if n := r.relays[0].Unserved(); n == 0 {
		t.Error("the relay has not counted the connections that were refused")
	}
}

// TestAnnouncedEnd: an answer with Connection: close is no loss, nor are
// pipelined requests behind it, which are sent again.
func TestAnnouncedEnd(t *testing.T) {
	srv, addr := serve(t, Handler())
	srv.SetKeepAlivesEnabled(false)
	r := start(t, Config{Addr: addr, Kinds: Each(1)})
	until(t, r, "an answer to each kind", answers(1))
	rep := r.Stop()
	if rep.Lost() > 0 {
		t.Errorf("got losses, want none:\n%v", rep)
	}
	for k, c := range rep.Kinds {
		if k.Keeps() && (c.Announced != c.Answered || c.Same > 0) {
			t.Errorf("%s: got %d answers, %d of them the connection's last, %d first connections; want each to be the last:\n%v",
				k, c.Answered, c.Announced, c.Same, rep)
		}
	}
	if n := rep.Kinds[Pipelined].Resent; n == 0 {
		t.Errorf("no pipelined request was sent again:\n%v", rep)
	}
}

// TestSeesShutdown: the load catches what every restart by Shutdown loses,
// though another server takes over the listener.
func TestSeesShutdown(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	var wg sync.WaitGroup
	next := func() *http.Server {
		srv := &http.Server{Handler: Handler()}
		wg.Go(func() { srv.Serve(keepOpen{ln}) })
		return srv
	}
	srv := next()
	r := start(t, Config{Addr: ln.Addr().String(), Delay: 2 * time.Millisecond, Kinds: map[Kind]int{KeepAlive: 16, Connect: 1}})
	until(t, r, "a lost keep-alive request", func(rep Report) bool {
		old := srv
		srv = next()
		ln.(*net.TCPListener).SetDeadline(time.Unix(1, 0)) // wakes the old listener
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		if err := old.Shutdown(ctx); err != nil {
			t.Fatal(err)
		}
		ln.(*net.TCPListener).SetDeadline(time.Time{})
		return rep.Kinds[KeepAlive].Losses() > 0 && rep.Kinds[KeepAlive].Idle > 0 && rep.Kinds[KeepAlive].Same == 0
	})
	rep := r.Stop()
	if n := rep.Kinds[KeepAlive].Same; n > 0 {
		t.Errorf("%d clients have their first connection, want none:\n%v", n, rep)
	}
	ln.Close() // first, since srv waits for Serve
	srv.Close()
	wg.Wait()
}

// keepOpen is a listener that Shutdown does not close.
type keepOpen struct{ net.Listener }

func (keepOpen) Close() error { return nil }

func wantHealthy(t *testing.T, rep Report) {
	t.Helper()
	total := rep.Total()
	if total.Losses() > 0 || total.Announced > 0 || total.Idle > 0 || total.Moved > 0 {
		t.Errorf("got losses, or connections that ended, on a healthy server:\n%v", rep)
	}
	for k, c := range rep.Kinds {
		if k.Keeps() && (c.Same != c.Clients || c.Opened != c.Clients) {
			t.Errorf("%s: %d of %d clients have their first connection, and %d were opened:\n%v", k, c.Same, c.Clients, c.Opened, rep)
		}
	}
	if len(rep.Pids) > 1 || len(rep.Pids) == 1 && rep.Pids[0] != os.Getpid() {
		t.Errorf("answered by %v, want %d", rep.Pids, os.Getpid())
	}
}
