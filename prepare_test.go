//go:build unix

package grace

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/julofinance/grace/v3/internal/testing/tlstest"
)

// framework sets srv up, and serves it, as github.com/prometheus/exporter-toolkit/web does.
func framework(srv *http.Server, ln net.Listener, config *tls.Config) <-chan error {
	served := make(chan error, 1)
	h := srv.Handler
	srv.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Framework", "yes")
		h.ServeHTTP(w, r)
	})
	go func() {
		if config == nil {
			served <- srv.Serve(ln)
			return
		}
		srv.TLSConfig = config
		served <- srv.ServeTLS(ln, "", "")
	}()
	return served
}

// TestPrepare: the framework's own Serve, of plaintext and of TLS, whose HTTP/2 is there
// too. What has begun is finished, and Serve returns ErrServerClosed.
func TestPrepare(t *testing.T) {
	cert, trust := tlstest.Certificate(t)
	for name, config := range map[string]*tls.Config{
		"plain": nil,
		"tls":   {Certificates: []tls.Certificate{cert}},
	} {
		t.Run(name, func(t *testing.T) {
			u, ln := newSolo(t)
			begun, end := make(chan struct{}, 9), make(chan struct{})
			shut := make(chan struct{}, 9)
			srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/hold" {
					begun <- struct{}{}
					<-end
				}
				io.WriteString(w, r.Proto)
			})}
			srv.RegisterOnShutdown(func() { shut <- struct{}{} })
			prepared, err := u.Prepare(srv, ln)
			if err != nil {
				t.Fatal(err)
			}
			served := framework(srv, prepared, config)
			ran := make(chan error, 1)
			go func() { ran <- u.Run(context.Background()) }()
			client := &http.Client{Timeout: limit, Transport: &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: trust.Clone()}}
			defer client.CloseIdleConnections()
			url, want := "http://"+ln.Addr().String(), "HTTP/1.1"
			if config != nil {
				url, want = "https://"+ln.Addr().String(), "HTTP/2.0"
			}
			ask := func(path string) error {
				resp, err := client.Get(url + path)
				if err != nil {
					return err
				}
				defer resp.Body.Close()
				body, err := io.ReadAll(resp.Body)
				if err == nil && (string(body) != want || resp.Header.Get("Framework") != "yes") {
					err = errors.New("the answer is " + string(body) + ", or has not come through the framework's handler")
				}
				return err
			}
			if err := ask("/"); err != nil {
				t.Fatal(err)
			}
			held := make(chan error, 1)
			go func() { held <- ask("/hold") }()
			receive(t, begun, "the request")
			u.askStop()
			receive(t, u.ctx.Done(), "the stop")
			close(end)
			if err := receive(t, held, "the answer"); err != nil {
				t.Errorf("the request that had begun: %v", err)
			}
			client.CloseIdleConnections()
			if err := receive(t, served, "Serve"); !errors.Is(err, http.ErrServerClosed) {
				t.Errorf("Serve returned %v, want ErrServerClosed", err)
			}
			if err := receive(t, ran, "Run"); err != nil {
				t.Errorf("Run returned %v", err)
			}
			receive(t, shut, "what was registered with RegisterOnShutdown")
		})
	}
}

// TestPrepareRolledBack: the new process dies while the old one drains; the old one
// serves on.
func TestPrepareRolledBack(t *testing.T) {
	addrs := make(chan net.Addr, 9)
	serves := make(chan (<-chan error), 9)
	hold, held := make(chan struct{}), make(chan struct{}, 9)
	h := newHouse(t, func(g *generation) error {
		ln, err := g.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/hold" {
				held <- struct{}{}
				<-hold
			}
			io.WriteString(w, string(rune('0'+g.n)))
		})}
		prepared, err := g.Prepare(srv, ln)
		if err != nil {
			return err
		}
		serves <- framework(srv, prepared, nil)
		addrs <- ln.Addr()
		return g.Ready()
	})
	h.opts = func(int) []Option { return []Option{Probation(0)} }
	g := h.first()
	addr := <-addrs
	if got := getBody(t, addr); got != "1" {
		t.Errorf("generation %s answers, want 1", got)
	}
	busy := make(chan error, 1)
	go func() {
		resp, err := http.Get("http://" + addr.String() + "/hold")
		if err == nil {
			resp.Body.Close()
		}
		busy <- err
	}()
	receive(t, held, "the request that holds a drain")
	done := g.upgrade()
	next := h.next()
	if err := receive(t, done, "Upgrade"); err != nil {
		t.Fatal(err)
	}
	next.die()
	g.awaitEither(serving, resuming)
	for range 3 {
		if got := getBody(t, addr); got != "1" {
			t.Errorf("generation %s answers after the roll back, want 1", got)
		}
	}
	close(hold)
	receive(t, busy, "the request that has held the drain")
	g.Close()
	if err := receive(t, receive(t, serves, "Serve"), "the end of Serve"); !errors.Is(err, http.ErrServerClosed) {
		t.Errorf("Serve returned %v, want ErrServerClosed", err)
	}
}

// TestPreparedServerThatIsShutDown: the program's own Shutdown ends what it serves.
func TestPreparedServerThatIsShutDown(t *testing.T) {
	u, ln := newSolo(t)
	srv := &http.Server{Handler: answering("hello")}
	prepared, err := u.Prepare(srv, ln)
	if err != nil {
		t.Fatal(err)
	}
	served := framework(srv, prepared, nil)
	if err := u.Ready(); err != nil {
		t.Fatal(err)
	}
	if got := getBody(t, ln.Addr()); got != "hello" {
		t.Errorf("got %q", got)
	}
	if err := srv.Shutdown(t.Context()); err != nil {
		t.Errorf("Shutdown: %v", err)
	}
	if err := receive(t, served, "Serve"); !errors.Is(err, http.ErrServerClosed) {
		t.Errorf("Serve returned %v, want ErrServerClosed", err)
	}
	u.Close()
}

// TestPrepareOfNothing: errors in place of a hang.
func TestPrepareOfNothing(t *testing.T) {
	u, ln := newSolo(t)
	for _, c := range []struct {
		srv *http.Server
		ln  net.Listener
	}{{nil, ln}, {&http.Server{}, nil}} {
		if l, err := u.Prepare(c.srv, c.ln); l != nil || err == nil {
			t.Errorf("Prepare gives %v, %v, want an error", l, err)
		}
	}
	srv := &http.Server{TLSConfig: &tls.Config{}}
	prepared, err := u.Prepare(srv, ln)
	if err != nil {
		t.Fatal(err)
	}
	// As ServeTLS with files does, which are in no TLSConfig but its own.
	cert, _ := tlstest.Certificate(t)
	over := tls.NewListener(prepared, &tls.Config{Certificates: []tls.Certificate{cert}})
	served := make(chan error, 1)
	go func() { served <- srv.Serve(over) }()
	if err := receive(t, served, "Serve"); err == nil || !strings.Contains(err.Error(), "TLSConfig") {
		t.Errorf("Serve returned %v, want what to do", err)
	}
	u.Close()
}
