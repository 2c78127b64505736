//go:build unix

package grace

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
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
