//go:build unix

package grace

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/testing/logtest"
	"github.com/julofinance/grace/v3/internal/testing/tlstest"
)

// getBody asks the server on addr for "/", and gives the answer's body.
func getBody(t *testing.T, addr net.Addr) string {
	t.Helper()
	client := http.Client{Timeout: limit, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, addr.Network(), addr.String())
		},
	}}
	resp, err := client.Get("http://host/")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

func answering(text string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, text) })
}

// TestRunServesAllThatWasGiven: servers given before Run and during it, of which a
// run.Group would have one already.
func TestRunServesAllThatWasGiven(t *testing.T) {
	u, first := newSolo(t)
	listen := func() net.Listener {
		ln, err := u.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return ln
	}
	second, late := listen(), listen()
	u.HTTP(&http.Server{Handler: answering("first")}, first)
	execute, _ := u.HTTP(&http.Server{Handler: answering("second")}, second)
	ran, executed := make(chan error, 1), make(chan error, 1)
	go func() { executed <- execute() }()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() { ran <- u.Run(ctx) }()
	for ln, want := range map[net.Listener]string{first: "first", second: "second"} {
		if got := getBody(t, ln.Addr()); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	u.HTTP(&http.Server{Handler: answering("late")}, late)
	if got := getBody(t, late.Addr()); got != "late" {
		t.Errorf("got %q of a server that was given to u while Run runs, want late", got)
	}
	cancel() // a soft stop
	if err := receive(t, ran, "Run"); err != nil {
		t.Errorf("Run returned %v after its context's end, want nil", err)
	}
	if err := receive(t, executed, "execute"); err != nil {
		t.Errorf("execute returned %v, want nil", err)
	}
	receive(t, u.Done(), "Done")
}

// TestContextsEndOfRunIsSoft: a request that has begun is finished, also when SIGTERM
// comes as well, which a context of signal.NotifyContext turns into a second stop.
func TestContextsEndOfRunIsSoft(t *testing.T) {
	u, ln := newSolo(t)
	begun, end := make(chan struct{}), make(chan struct{})
	u.HTTP(&http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		close(begun)
		<-end
		io.WriteString(w, "finished")
	})}, ln)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ran, got := make(chan error, 1), make(chan string, 1)
	go func() { ran <- u.Run(ctx) }()
	go func() { got <- getBody(t, ln.Addr()) }()
	receive(t, begun, "the request")
	cancel()
	receive(t, u.ctx.Done(), "the stop")
	u.happen(evStop{stopRequest{signal: syscall.SIGTERM}})
	close(end)
	if got := receive(t, got, "the answer"); got != "finished" {
		t.Errorf("got %q, want finished", got)
	}
	if err := receive(t, ran, "Run"); err != nil {
		t.Errorf("Run returned %v, want nil", err)
	}
}

// TestServersRunOnce: a second call of execute joins the first, and so does Run.
func TestServersRunOnce(t *testing.T) {
	u, ln := newSolo(t)
	broken := errors.New("broken")
	var calls atomic.Int32
	fail := make(chan struct{})
	execute, _ := u.Server(Server{Listener: ln, Serve: func(net.Listener) error {
		calls.Add(1)
		<-fail
		return broken
	}})
	results := make(chan error, 3)
	for range 2 {
		go func() { results <- execute() }()
	}
	go func() { results <- u.Run(t.Context()) }()
	until(t, "Serve to be called", func() bool { return calls.Load() > 0 })
	close(fail)
	for range 3 {
		if err := receive(t, results, "a result"); !errors.Is(err, broken) {
			t.Errorf("got %v, want what Serve returned", err)
		}
	}
	if n := calls.Load(); n != 1 {
		t.Errorf("Serve was called %d times, want once", n)
	}
	receive(t, u.Done(), "Done")
}

// TestRunOfAServerThatFails: the others are ended, and nothing hangs.
func TestRunOfAServerThatFails(t *testing.T) {
	for name, broken := range map[string]func(u *Upgrader, ln net.Listener){
		"nil":    func(u *Upgrader, ln net.Listener) { u.HTTP(nil, ln) },
		"closed": func(u *Upgrader, ln net.Listener) { ln.Close(); u.HTTP(&http.Server{}, ln) },
	} {
		t.Run(name, func(t *testing.T) {
			lines := logtest.New(func(slog.Record) {})
			u, ln := newSolo(t, Logger(slog.New(lines)))
			u.HTTP(&http.Server{}, ln)
			second, err := u.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			broken(u, second)
			ran := make(chan error, 1)
			go func() { ran <- u.Run(t.Context()) }()
			failed := receive(t, ran, "Run")
			if failed == nil {
				t.Fatal("Run returned nil, want the error of the server that failed")
			}
			receive(t, u.Done(), "Done")
			if want := fmt.Sprintf("level=ERROR msg=\"grace: a server has ended with an error; this process gives up\" err=%q", failed); !strings.Contains(lines.Buffer.String(), want) {
				t.Errorf("the log does not say %s:\n%s", want, lines.Buffer)
			}
		})
	}
}

// TestRunWithoutContext: nothing is served, and the Upgrader ends.
func TestRunWithoutContext(t *testing.T) {
	u, _ := newSolo(t)
	var none context.Context
	if err := u.Run(none); err == nil || !strings.Contains(err.Error(), "the context is nil") {
		t.Errorf("Run(nil): %v", err)
	}
	receive(t, u.Done(), "Done")
}

// TestListenAndServeOfAnUpgrader: on TCP, on TLS where there is a certificate, and on a
// unix socket.
func TestListenAndServeOfAnUpgrader(t *testing.T) {
	cert, trust := tlstest.Certificate(t)
	path := filepath.Join(t.TempDir(), "s")
	u, ln := newSolo(t)
	ln.Close()
	servers := []*http.Server{
		{Addr: "127.0.0.1:0", Handler: answering("plain")},
		{Addr: "unix:" + path, Handler: answering("unix")},
		{Addr: "127.0.0.1:0", Handler: answering("certificate"), TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}}},
		{Addr: "127.0.0.1:0", Handler: answering("by name"), TLSConfig: &tls.Config{
			GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &cert, nil },
		}},
		{Addr: "127.0.0.1:0", Handler: answering("by client"), TLSConfig: &tls.Config{
			GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
				return &tls.Config{Certificates: []tls.Certificate{cert}}, nil
			},
		}},
		{Addr: "127.0.0.1:0", Handler: answering("no certificate"), TLSConfig: &tls.Config{}},
	}
	ran := make(chan error, 1)
	go func() { ran <- u.ListenAndServe(servers...) }()
	until(t, "all to listen", func() bool { return len(u.socks.Snapshot()) == len(servers) })
	for i, want := range []string{"plain", "unix", "certificate", "by name", "by client", "no certificate"} {
		addr := u.socks.Snapshot()[i].Listener.Addr()
		var got string
		if i < 2 || i == 5 {
			got = getBody(t, addr)
		} else {
			client := http.Client{Timeout: limit, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: trust.Clone()}}
			resp, err := client.Get("https://" + addr.String() + "/")
			if err != nil {
				t.Fatalf("%s: %v", want, err)
			}
			b, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			got = string(b)
		}
		if got != want {
			t.Errorf("server %d says %q, want %q", i, got, want)
		}
	}
	u.askStop()
	if err := receive(t, ran, "ListenAndServe"); err != nil {
		t.Errorf("ListenAndServe returned %v, want nil", err)
	}
}

// TestListenAndServeThatFails: nothing is left behind.
func TestListenAndServeThatFails(t *testing.T) {
	for name, c := range map[string]struct {
		servers []*http.Server
		want    string
	}{
		"none":        {nil, "no server was given"},
		"nil":         {[]*http.Server{{Addr: "127.0.0.1:0"}, nil}, "server 2 of 2 is nil"},
		"bad address": {[]*http.Server{{Addr: "127.0.0.1:0"}, {Addr: "nonsense"}}, "nonsense"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("GRACE_PIDFILE", filepath.Join(t.TempDir(), "pid"))
			t.Cleanup(func() { takenPIDFile.Store("") })
			for range 2 { // the first has left nothing that is in the second's way
				err := ListenAndServe(c.servers...)
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("got %v, want an error with %q", err, c.want)
				}
			}
		})
	}
}

// TestListenAndServe: the function, from New to the stop.
func TestListenAndServe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	ran := make(chan error, 1)
	go func() { ran <- ListenAndServe(&http.Server{Addr: "unix:" + path, Handler: answering("hello")}) }()
	until(t, "the server to answer", func() bool {
		c, err := net.DialTimeout("unix", path, time.Second)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	if got := getBody(t, &net.UnixAddr{Name: path, Net: "unix"}); got != "hello" {
		t.Errorf("got %q, want hello", got)
	}
	inUse.mu.Lock()
	u := inUse.by
	inUse.mu.Unlock()
	u.askStop()
	if err := receive(t, ran, "ListenAndServe"); err != nil {
		t.Errorf("ListenAndServe returned %v, want nil", err)
	}
}
