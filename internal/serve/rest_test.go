//go:build linux

package serve

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/testing/wait"
)

// newResting gives two processes whose TLS connections don't move: the server does TLS, or
// a listener of the program's.
func newResting(t *testing.T, byListener bool, configure func(*http.Server)) (*couple, *tls.Config) {
	t.Helper()
	w := newTLSWorld(t)
	return newCouple(t, func(side string) http.Handler {
		c := configured{
			Handler: saysSide(side),
			configure: func(srv *http.Server) {
				if !byListener {
					srv.TLSConfig = w.old
				}
				configure(srv)
			},
			host: func(h *Host) { h.IdleGrace = 20 * time.Millisecond },
		}
		if byListener {
			c.wrap = func(ln net.Listener) net.Listener { return tls.NewListener(ln, w.old) }
		}
		return c
	}), w.client
}

func restings(t *testing.T, f func(t *testing.T, byListener bool)) {
	for _, byListener := range []bool{false, true} {
		t.Run(fmt.Sprintf("by a listener of the program %v", byListener), func(t *testing.T) { f(t, byListener) })
	}
}

// TestTLSWaitsForARequest: an idle TLS connection that can't move outlives the idle grace,
// and its next request is answered, with Connection: close. One in the midst of a header
// does not outlive it.
func TestTLSWaitsForARequest(t *testing.T) {
	restings(t, func(t *testing.T, byListener bool) {
		p, client := newResting(t, byListener, func(*http.Server) {})
		idle, r := p.askTLS(client)
		half, halfR := p.askTLS(client)
		fmt.Fprint(half, "GET / HTTP/1.1\r\n")
		p.await("half a header", func() bool {
			n := 0
			for _, t := range p.old.l.Live.All() {
				if t.State().Begun {
					n++
				}
			}
			return n == 1
		})
		done := p.drainResting(time.Hour) // longer than any client waits
		if _, err := halfR.ReadByte(); err != io.EOF {
			t.Errorf("in the midst of a header: %v, want %v", err, io.EOF)
		}
		// By now the idle grace is over.
		req, _ := http.NewRequest("GET", "http://a.test/", nil)
		req.Write(idle)
		resp, err := http.ReadResponse(r, req)
		if err != nil {
			t.Fatal(err)
		}
		if body, _ := io.ReadAll(resp.Body); string(body) != "old" || !resp.Close {
			t.Errorf("the answer is %q, Connection: close %v; want old, and close", body, resp.Close)
		}
		if rep := wait.For(t, done, "the drain to end"); rep.Cut != 0 || rep.Finished != 2 {
			t.Errorf("%+v, want 2 finished", rep)
		}
	})
}

// TestTLSRestsUntil: it ends by itself before the drain's time is up, or when the server's
// own IdleTimeout is over.
func TestTLSRestsUntil(t *testing.T) {
	for _, c := range []struct {
		name        string
		limit, idle time.Duration
	}{
		{"the end of the drain", 200 * time.Millisecond, 0},
		{"the server's IdleTimeout", time.Hour, 200 * time.Millisecond},
	} {
		t.Run(c.name, func(t *testing.T) {
			restings(t, func(t *testing.T, byListener bool) {
				p, client := newResting(t, byListener, func(srv *http.Server) { srv.IdleTimeout = c.idle })
				_, r := p.askTLS(client)
				done := p.drainResting(c.limit)
				if _, err := r.ReadByte(); err != io.EOF {
					t.Errorf("%v, want %v", err, io.EOF)
				}
				if rep := wait.For(t, done, "the drain to end"); rep.Cut != 0 || rep.Finished != 1 {
					t.Errorf("%+v, want 1 finished", rep)
				}
			})
		})
	}
}

// drainResting is drain after an upgrade by which nothing moves, with this limit; but the
// drain itself has none.
func (p *couple) drainResting(limit time.Duration) <-chan Report {
	p.new.open()
	p.old.u.Socks.Yield(p.old.u.Socks.Snapshot(), []int{0})
	p.old.u.Socks.EndAccept()
	d := NewDrain(nil)
	d.LetRest(limit)
	done := make(chan Report, 1)
	go func() { done <- p.old.http.Drain(d) }() // LetRest is earlier than the limit
	p.t.Cleanup(d.Hurry)
	return done
}
