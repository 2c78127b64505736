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
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/control"
	"github.com/julofinance/grace/v3/internal/serve"
	"github.com/julofinance/grace/v3/internal/testing/logtest"
	"github.com/julofinance/grace/v3/internal/testing/tlstest"
)

// is200 is a health check of HTTP, whose URL is url.
func is200(url string) func(context.Context, *http.Client) error {
	return func(ctx context.Context, c *http.Client) error {
		req, err := http.NewRequestWithContext(ctx, "GET", url, nil)
		if err != nil {
			return err
		}
		resp, err := c.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s answers %s", url, resp.Status)
		}
		return nil
	}
}

// httpHouse is a house whose generations serve HTTP with the handler that gives.
func httpHouse(t *testing.T, network string, handler func(g *generation) http.HandlerFunc, opts ...Option) (*house, chan net.Addr) {
	addrs := make(chan net.Addr, 99)
	addr := "127.0.0.1:0"
	if network != "tcp" {
		addr = filepath.Join(t.TempDir(), "s")
	}
	h := newHouse(t, func(g *generation) error {
		l, err := g.Listen(network, addr)
		if err != nil {
			return err
		}
		execute, _ := g.HTTP(&http.Server{Handler: handler(g)}, l)
		go execute()
		addrs <- l.Addr()
		return g.Ready()
	})
	h.opts = func(int) []Option { return append([]Option{Probation(0)}, opts...) }
	return h, addrs
}

// getFrom is the body that the process at addr answers with.
func getFrom(t *testing.T, addr net.Addr) string {
	t.Helper()
	c := &http.Client{Timeout: limit, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, addr.Network(), addr.String())
	}}}
	resp, err := c.Get("http://test/")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// refused upgrades g to a version that is killed, and returns the error.
func refused(t *testing.T, g *generation, addr net.Addr) error {
	t.Helper()
	done := g.upgrade()
	next := g.house.next()
	if next.err != nil {
		t.Fatal(next.err)
	}
	err := receive(t, done, "Upgrade")
	wantErr(t, err, ErrUnhealthy)
	receive(t, next.ended, "the end of the new one")
	if got, want := getFrom(t, addr), fmt.Sprint(g.n); got != want {
		t.Errorf("after the roll back generation %s answers, want %s", got, want)
	}
	return err
}

// accepted upgrades g to a version that stays.
func accepted(t *testing.T, g *generation) *generation {
	t.Helper()
	done := g.upgrade()
	next := g.house.next()
	if err := errors.Join(next.err, receive(t, done, "Upgrade")); err != nil {
		t.Fatal(err)
	}
	receive(t, g.Done(), "Done of the old one")
	return next
}

func (g *generation) stop(t *testing.T) {
	t.Helper()
	g.askStop()
	receive(t, g.Done(), "Done")
}

// A new version whose handlers fail is killed, and the old one serves on; the next one,
// which is well, takes over.
func TestHealthCheck(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			h, addrs := httpHouse(t, network, func(g *generation) http.HandlerFunc {
				return func(w http.ResponseWriter, r *http.Request) {
					if g.n == 2 {
						w.WriteHeader(http.StatusInternalServerError)
					}
					fmt.Fprint(w, g.n)
				}
			}, HealthCheck(is200("http://any.host/health")))
			g := h.first()
			err := refused(t, g, <-addrs)
			if want := "HealthCheck: http://any.host/health answers 500"; !strings.Contains(err.Error(), want) {
				t.Errorf("the error is %q, want one with %q", err, want)
			}
			accepted(t, g).stop(t)
		})
	}
}

// A check over TLS begins with a handshake, and speaks HTTP/2 if the server does.
func TestHealthCheckOverTLS(t *testing.T) {
	for _, proto := range []string{"h2", "http/1.1"} {
		t.Run(proto, func(t *testing.T) {
			cert, client := tlstest.Certificate(t)
			checked := make(chan string, 9)
			var sick bool // guarded by the order of the upgrades
			h := newHouse(t, func(g *generation) error {
				l, err := g.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					return err
				}
				sick := sick
				srv := &http.Server{
					TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{proto}},
					Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						if sick || r.TLS == nil || r.TLS.NegotiatedProtocol != proto {
							w.WriteHeader(http.StatusTeapot)
						}
					}),
				}
				execute, _ := g.HTTPS(srv, l, "", "")
				go execute()
				return g.Ready()
			})
			h.opts = func(int) []Option {
				return []Option{Probation(0), HealthCheck(func(ctx context.Context, c *http.Client) error {
					c.Transport.(*http.Transport).TLSClientConfig = client
					resp, err := c.Get("https://127.0.0.1/")
					if err != nil {
						return err
					}
					checked <- resp.Proto
					resp.Body.Close()
					if resp.StatusCode != http.StatusOK {
						return errors.New(resp.Status)
					}
					return nil
				})}
			}
			g := h.first()
			sick = true
			done := g.upgrade()
			h.next()
			wantErr(t, receive(t, done, "Upgrade"), ErrUnhealthy)
			want := map[string]string{"h2": "HTTP/2.0", "http/1.1": "HTTP/1.1"}[proto]
			if got := receive(t, checked, "the check"); got != want {
				t.Errorf("the check has spoken %s, want %s", got, want)
			}
			sick = false
			accepted(t, g).stop(t)
		})
	}
}

// A check of another protocol gets a connection to the listener that it names.
func TestHealthCheckConn(t *testing.T) {
	first, second := make(chan net.Addr, 9), make(chan net.Addr, 9)
	h := newHouse(t, func(g *generation) error {
		for i, addrs := range []chan net.Addr{first, second} {
			l, err := g.Listen("tcp", "localhost:0")
			if i == 1 {
				l.Close()
				l, err = g.Listen("tcp4", "127.0.0.1:0")
			}
			if err != nil {
				return err
			}
			addrs <- l.Addr()
			if i == 1 {
				g.serve(l)
			}
		}
		return g.Ready()
	})
	h.opts = func(int) []Option {
		return []Option{Probation(0), HealthCheckConn("tcp4", "127.0.0.1:0", func(_ context.Context, c net.Conn) error {
			if _, ok := c.(*net.TCPConn); !ok {
				return fmt.Errorf("it is a %T", c)
			}
			if b, err := io.ReadAll(c); string(b) != "3" {
				return fmt.Errorf("the answer is %q, %v", b, err)
			}
			return nil
		})}
	}
	g := h.first()
	done := g.upgrade()
	h.next()
	err := receive(t, done, "Upgrade")
	wantErr(t, err, ErrUnhealthy)
	if want := `HealthCheckConn: the answer is "2"`; !strings.Contains(err.Error(), want) {
		t.Errorf("the error is %q, want one with %q", err, want)
	}
	accepted(t, g).stop(t)
}

// The port of the URL says which of several listeners is meant.
func TestHealthCheckOfSeveralListeners(t *testing.T) {
	var addrs []net.Addr // of generation 1
	var url func() string
	h := newHouse(t, func(g *generation) error {
		for i := range 2 {
			l, err := g.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				return err
			}
			execute, _ := g.HTTP(&http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(200 + i) })}, l)
			go execute()
			if g.n == 1 {
				addrs = append(addrs, l.Addr())
			}
		}
		return g.Ready()
	})
	h.opts = func(int) []Option {
		return []Option{Probation(0), HealthCheck(func(ctx context.Context, c *http.Client) error { return is200(url())(ctx, c) })}
	}
	g := h.first()
	port := func(i int) string { return fmt.Sprint(addrs[i].(*net.TCPAddr).Port) }
	for u, want := range map[string]string{
		"http://any.host:" + port(1) + "/":   "answers 201",
		"http://" + addrs[1].String() + "/":  "answers 201",
		"http://any.host/":                   fmt.Sprintf("the new process has no listener with port 80; it has tcp %v, tcp %v", addrs[0], addrs[1]),
		"http://any.host:" + port(0) + "1/x": "the new process has no listener with port " + port(0) + "1",
	} {
		url = func() string { return u }
		done := g.upgrade()
		h.next()
		err := receive(t, done, "Upgrade")
		wantErr(t, err, ErrUnhealthy)
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%s: the error is %q, want one with %q", u, err, want)
		}
	}
	url = func() string { return "http://any.host:" + port(0) + "/" }
	accepted(t, g).stop(t)
}

// A check that panics, does not return, or names a listener that is not there has failed.
func TestHealthCheckThatFails(t *testing.T) {
	for name, c := range map[string]struct {
		check Option
		want  string
	}{
		"panic": {HealthCheck(func(context.Context, *http.Client) error { panic("oh") }), "HealthCheck has panicked: oh"},
		"no listener": {
			HealthCheckConn("tcp", "127.0.0.1:1", func(context.Context, net.Conn) error { return nil }),
			"HealthCheckConn: the new process has no listener tcp 127.0.0.1:1; it has tcp 127.0.0.1:",
		},
		"no answer": {HealthCheck(func(_ context.Context, c *http.Client) error {
			_, err := c.Get("http://any.host/hang")
			return err
		}), "HealthCheck has not returned within 5s\nHealthCheck: Get "},
		"deaf to its context": {HealthCheck(func(context.Context, *http.Client) error { select {} }), "HealthCheck has not returned within 5s, and does not heed its context"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h, addrs := httpHouse(t, "tcp", func(g *generation) http.HandlerFunc {
				return func(w http.ResponseWriter, r *http.Request) {
					if r.URL.Path == "/hang" {
						<-g.dying
					}
					fmt.Fprint(w, g.n)
				}
			}, c.check)
			g := h.first()
			if err := refused(t, g, <-addrs); !strings.Contains(err.Error(), c.want) {
				t.Errorf("the error is %q, want one with %q", err, c.want)
			}
			g.stop(t)
		})
	}
}

// A nil check is none.
func TestNoHealthCheck(t *testing.T) {
	o, err := newOptions([]Option{HealthCheck(nil), HealthCheckConn("tcp", ":1", nil)})
	if err != nil || len(o.health) > 0 {
		t.Errorf("%d checks, error %v, want none", len(o.health), err)
	}
}

// readyAsBefore is Ready of a version that can't be given connections.
func (g *generation) readyAsBefore() error {
	p := g.parent
	c := g.socks.Claims()
	c.Pongs, p.told = true, c.Sockets
	p.ch.Send(control.NewMessage(msgClaims, &c))
	p.ready.WriteString(readyLine)
	p.ready.Close()
	if err := p.awaitGo(g.ctx); err != nil {
		return err
	}
	return g.accept()
}

// A version that can't be given connections is not checked, and the log says so.
func TestHealthOfAnEarlierVersion(t *testing.T) {
	lines := logtest.New(func(slog.Record) {})
	h := newHouse(t, func(g *generation) error {
		if g.n == 2 {
			return g.readyAsBefore()
		}
		return g.Ready()
	})
	h.opts = func(int) []Option {
		return []Option{Probation(0), Logger(slog.New(lines)), HealthCheck(func(context.Context, *http.Client) error { return errors.New("it was checked") })}
	}
	g := h.first()
	accepted(t, g).stop(t)
	if log := lines.Buffer.String(); !strings.Contains(log, "its health is not checked\" new=100002") {
		t.Errorf("the log says\n%s\nwant that the health is not checked", log)
	}
}

// A stop in probation does not wait for a check, and its end is no roll back.
func TestStopDuringHealthCheck(t *testing.T) {
	begun, over := make(chan struct{}, 9), make(chan error, 9)
	h := newHouse(t, func(g *generation) error { return g.Ready() })
	h.opts = func(int) []Option {
		return []Option{Probation(time.Hour), HealthCheck(func(ctx context.Context, _ *http.Client) error {
			begun <- struct{}{}
			<-ctx.Done()
			over <- ctx.Err()
			return ctx.Err()
		})}
	}
	g := h.first()
	next, done := g.toProbation()
	slow := &slowDrainer{begun: make(chan *serve.Drain, 9), notice: make(chan struct{}, 9)}
	next.host.Add(slow) // it lives until the check is over
	receive(t, begun, "the check")
	g.askStop()
	if err := receive(t, done, "Upgrade"); err != nil {
		t.Errorf("Upgrade: %v, want nil: the new process has taken over, and is told to stop", err)
	}
	if err := receive(t, over, "the check's end"); err != context.Canceled {
		t.Errorf("the check's context: %v, want that it is cancelled", err)
	}
	slow.notice <- struct{}{}
	receive(t, g.Done(), "Done")
	receive(t, next.Done(), "Done of the new one")
}
