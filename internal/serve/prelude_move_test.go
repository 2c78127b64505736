//go:build linux

package serve

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/sockets"
	"github.com/julofinance/grace/v3/internal/testing/wait"
)

// saysSideOf is saysSide, with settings of the old and of the new process's server.
func saysSideOf(old, new func(*http.Server)) func(string) http.Handler {
	return func(side string) http.Handler {
		return configured{Handler: saysSide(side), configure: map[string]func(*http.Server){"old": old, "new": new}[side]}
	}
}

func idleTimeout(d time.Duration) func(*http.Server) {
	return func(srv *http.Server) { srv.IdleTimeout = d }
}

// withH2C lets the server speak HTTP/2 without TLS as well.
func withH2C(set func(*http.Server)) func(*http.Server) {
	return func(srv *http.Server) {
		set(srv)
		srv.Protocols = new(http.Protocols)
		srv.Protocols.SetHTTP1(true)
		srv.Protocols.SetUnencryptedHTTP2(true)
	}
}

// wants is the read deadline that the server has set, to the minute.
func wants(t *sockets.Track) time.Duration {
	s := t.State()
	if s.Deadline.IsZero() || s.Offered == 0 {
		return 0
	}
	return time.Until(s.Deadline).Round(time.Minute)
}

// TestDeadlineMoves: how long a connection may still be idle, or wait for its
// first request, does not begin anew with each process.
func TestDeadlineMoves(t *testing.T) {
	header := func(d time.Duration) func(*http.Server) {
		return func(srv *http.Server) { srv.ReadHeaderTimeout = d }
	}
	read := func(d time.Duration) func(*http.Server) {
		return func(srv *http.Server) { srv.ReadTimeout = d }
	}
	for _, test := range []struct {
		name     string
		old, new func(*http.Server)
		fresh    bool
		want     time.Duration
	}{
		{"idle, shorter in old", idleTimeout(time.Hour), idleTimeout(2 * time.Hour), false, time.Hour},
		{"idle, shorter in new", idleTimeout(2 * time.Hour), idleTimeout(time.Hour), false, time.Hour},
		{"idle, without end in old", idleTimeout(0), idleTimeout(time.Hour), false, time.Hour},
		{"idle, HTTP/2 is spoken in new too", idleTimeout(time.Hour), withH2C(idleTimeout(2 * time.Hour)), false, time.Hour},
		{"idle, HTTP/2 is spoken in both too", withH2C(idleTimeout(time.Hour)), withH2C(idleTimeout(2 * time.Hour)), false, time.Hour},
		{"new, shorter in old", header(time.Hour), header(2 * time.Hour), true, time.Hour},
		{"new, shorter in new", header(2 * time.Hour), header(time.Hour), true, time.Hour},
		{"new, without end in old", header(0), header(time.Hour), true, time.Hour},
		{"idle by ReadTimeout, shorter in old", read(time.Hour), read(2 * time.Hour), false, time.Hour},
		{"idle by ReadTimeout, shorter in new", read(2 * time.Hour), read(time.Hour), false, time.Hour},
		{"new by ReadTimeout, shorter in old", read(time.Hour), read(2 * time.Hour), true, time.Hour},
		{"new by ReadTimeout, shorter in new", read(2 * time.Hour), read(time.Hour), true, time.Hour},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := newCouple(t, saysSideOf(test.old, test.new))
			p.runOld()
			p.runNew()
			if test.fresh {
				p.dial()
			} else {
				p.ask()
			}
			before := sockets.TrackOf(wait.For(t, p.old.seen, "the old process's connection"))
			p.await("the old process's server to wait", func() bool {
				return before.State().Offered > 1
			})
			_, done := p.drain()
			wait.For(t, done, "the connection to move")
			now := sockets.TrackOf(wait.For(t, p.new.seen, "the new process's connection"))
			p.await("the new process's server to wait", func() bool { return wants(now) != 0 })
			if got := wants(now); got != test.want {
				t.Errorf("it may wait for %v, want %v", got, test.want)
			}
		})
	}
}

// askRaw sends something and gives the status of the answer, and its body.
func askRaw(t *testing.T, c net.Conn, r *bufio.Reader, send string) (int, string) {
	t.Helper()
	io.WriteString(c, send)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// TestPostIsRemembered: after a POST net/http bears an empty line before the next
// request, and after others it does not; moved, taken back or neither.
func TestPostIsRemembered(t *testing.T) {
	const get, post = "GET / HTTP/1.1\r\nHost: grace\r\n\r\n", "POST / HTTP/1.1\r\nHost: grace\r\nContent-Length: 0\r\n\r\n"
	for _, side := range []string{"old", "new", "old, refused by new"} {
		for last, status := range map[string]int{get: 400, post: 200, post + get: 400, get + post: 200} {
			p := newCouple(t, saysSide)
			p.runOld()
			if strings.HasSuffix(side, "refused by new") {
				p.recv.Find = func(int) *sockets.Listener { return nil }
			}
			p.runNew()
			c := p.dial()
			r := bufio.NewReader(c)
			for range strings.Count(last, "HTTP") - 1 {
				askRaw(t, c, r, last)
				last = ""
			}
			askRaw(t, c, r, last)
			first := wait.For(t, p.old.seen, "the old process's connection")
			if side != "old" {
				p.drain()
				if side == "new" {
					wait.For(t, p.new.seen, "the new process's connection")
				} else if wait.For(t, p.old.seen, "the old process's connection again") == first {
					t.Error("the same connection again")
				}
			}
			got, body := askRaw(t, c, r, "\r\n"+get)
			if got != status || got == 200 && body != side[:3] {
				t.Errorf("%s: an empty line and a GET: got %d %s, want %d %.3s", side, got, body, status, side)
			}
			c.Close()
		}
	}
}

// TestMoveWithoutKeepAlives: a server that keeps no connection serves one that was
// moved to it all the same, once.
func TestMoveWithoutKeepAlives(t *testing.T) {
	p := newCouple(t, saysSideOf(func(*http.Server) {}, func(srv *http.Server) { srv.SetKeepAlivesEnabled(false) }))
	p.runOld()
	p.runNew()
	c, r := p.ask()
	_, done := p.drain()
	wait.For(t, done, "the connection to move")
	wantAnswer(t, c, r, "", "new")
	if _, err := r.ReadByte(); err != io.EOF {
		t.Errorf("after the answer: got %v, want %v", err, io.EOF)
	}
}

// TestIdleRuleFails: with a net/http that does not behave as assumed nothing
// moves, and one line says so.
func TestIdleRuleFails(t *testing.T) {
	p := newCouple(t, saysSide)
	var out bytes.Buffer
	p.old.u.Log = slog.New(slog.NewTextHandler(&out, nil))
	p.old.u.Host.rule.check = func() error { return watchServer(strangeServer{noDeadline: true}.serve) }
	p.runOld()
	p.runNew()
	c, r := p.ask()
	_, done := p.drain()
	p.await("the check", func() bool { return p.old.http.draining.Load() != nil })
	p.old.http.Offer(p.mover) // the new process takes more, say
	wantAnswer(t, c, r, "", "old")
	if _, err := r.ReadByte(); err != io.EOF {
		t.Errorf("after the answer: got %v, want %v", err, io.EOF)
	}
	wait.For(t, done, "the drain")
	if n := p.mover.Count(); n != 0 {
		t.Errorf("%d connections were moved", n)
	}
	if p.old.u.idleRuleHolds() || strings.Count(out.String(), "\n") != 1 || !strings.Contains(out.String(), "no connection of net/http is moved") {
		t.Errorf("logged\n%swant one line", &out)
	}
}

// TestIdleRuleHoldsNothingUp: the goroutine that says that the new process takes more
// does not wait for the check.
func TestIdleRuleHoldsNothingUp(t *testing.T) {
	p := newCouple(t, saysSide)
	checking, go1 := make(chan struct{}), make(chan struct{})
	p.old.u.Host.rule.check = func() error {
		close(checking)
		select {
		case <-go1:
			return nil
		case <-time.After(wait.Limit):
			return errors.New("it was waited for")
		}
	}
	p.runOld()
	p.runNew()
	c, r := p.ask()
	_, done := p.drain()
	wait.For(t, checking, "the check")
	p.old.http.Offer(p.mover)
	close(go1)
	wait.For(t, done, "the connection to move")
	wantAnswer(t, c, r, "", "new")
}

// TestHalfHeaderWhileOthersMove: a client that stops in the middle of a header, so that
// its connection can't move, does not keep the old process from ending.
func TestHalfHeaderWhileOthersMove(t *testing.T) {
	p := newCouple(t, saysSide)
	p.mover.Grace = 10 * time.Millisecond
	p.runOld()
	p.runNew()
	c, r := p.ask()
	half, _ := p.ask()
	io.WriteString(half, "GET / HTTP/1.1\r\nHo")
	for range 2 {
		conn := sockets.TrackOf(wait.For(t, p.old.seen, "a connection"))
		if conn.Inner.RemoteAddr().String() != half.LocalAddr().String() {
			continue
		}
		p.await("half a header", func() bool { s := conn.State(); return s.Begun && s.Idle })
	}
	_, done := p.drain()
	wait.For(t, done, "the old process to end")
	wantAnswer(t, c, r, "", "new")
	if n := p.mover.Count(); n != 1 {
		t.Errorf("%d connections were moved, want 1", n)
	}
}

// A sniffer stands for listeners that look at the first bytes of a connection
// before a server gets it, as a cmux does.
type sniffer struct {
	net.Listener
	out   chan net.Conn
	ended chan struct{}
}

func newSniffer(ln net.Listener) net.Listener {
	s := &sniffer{ln, make(chan net.Conn), make(chan struct{})}
	go func() {
		defer close(s.ended)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go s.sniff(c)
		}
	}()
	return s
}

func (s *sniffer) sniff(c net.Conn) {
	sniffed := &sniffedConn{c, bufio.NewReader(c)}
	sniffed.first.Peek(4)
	select {
	case s.out <- sniffed:
	case <-s.ended:
		c.Close()
	}
}

func (s *sniffer) Accept() (net.Conn, error) {
	select {
	case c := <-s.out:
		return c, nil
	case <-s.ended:
		return nil, net.ErrClosed
	}
}

// A sniffedConn gives the first bytes again.
type sniffedConn struct {
	net.Conn
	first *bufio.Reader
}

func (c *sniffedConn) Read(p []byte) (int, error) { return c.first.Read(p) }

// TestMoveToSniffer: a server whose listener has read the first bytes of the next
// request already answers that one, and the deadline of the wait before is over.
func TestMoveToSniffer(t *testing.T) {
	p := newCouple(t, func(side string) http.Handler {
		c := configured{Handler: saysSide(side), configure: idleTimeout(time.Hour)}
		if side == "new" {
			c.configure, c.wrap = idleTimeout(2*time.Hour), newSniffer
		}
		return c
	})
	p.new.l.Take(sockets.ProtocolHTTP1) // as if a connection had proven it
	p.mover.Learn(p.new.u.Socks.Claims())
	p.runOld()
	p.runNew()
	c, r := p.ask()
	_, done := p.drain()
	wait.For(t, done, "the connection to move")
	wantAnswer(t, c, r, "", "new")
	now := sockets.TrackOf(wait.For(t, p.new.seen, "the new process's connection").(*sniffedConn).Conn)
	p.await("the new process's server to wait", func() bool { return wants(now) > 0 }) // net/http's is in the past for an instant
	if got, want := wants(now), 2*time.Hour; got != want {
		t.Errorf("it may wait for %v, want %v", got, want)
	}
	wantAnswer(t, c, r, "", "new")
}
