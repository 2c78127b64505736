//go:build linux

package grace

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// request sends one and gives the answer's body.
func request(t *testing.T, c net.Conn, r *bufio.Reader, body string) string {
	t.Helper()
	req, _ := http.NewRequest("POST", "http://grace/", strings.NewReader(body))
	if err := req.Write(c); err != nil {
		t.Fatalf("send a request: %v", err)
	}
	resp, err := http.ReadResponse(r, req)
	if err != nil {
		t.Fatalf("read the answer: %v", err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("read the answer's body: %v", err)
	}
	return string(b)
}

func wantAnswer(t *testing.T, c net.Conn, r *bufio.Reader, body, want string) {
	t.Helper()
	if got := request(t, c, r, body); got != want {
		t.Errorf("%q answers, want %q", got, want)
	}
}

// A body larger than the server's buffer is read past it, in slices of any size.
func TestMoveAfterLargeBody(t *testing.T) {
	p := newCouple(t, saysSide)
	p.runOld()
	p.runNew()
	c := p.dial()
	r := bufio.NewReader(c)
	body := strings.Repeat("x", 300<<10)
	wantAnswer(t, c, r, body, "old")
	_, done := p.drain()
	receive(t, done, "the connection to move")
	wantAnswer(t, c, r, body, "new")
}

// awaitMoves waits until the mover has n connections on their way.
func (p *couple) awaitMoves(n int) {
	p.t.Helper()
	p.await("connections on their way", func() bool {
		p.mover.mu.Lock()
		defer p.mover.mu.Unlock()
		return len(p.mover.sent)+len(p.mover.queue) == n
	})
}

func (p *couple) await(what string, cond func() bool) {
	p.t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	end := time.After(limit)
	for !cond() {
		select {
		case <-tick.C:
		case <-end:
			p.t.Fatalf("waited %v for %s", limit, what)
		}
	}
}

// The channel's writer knows a connection by its descriptor's number alone: if
// the program closed it meanwhile, another file would be sent under it.
func TestCloseOfMovingConnection(t *testing.T) {
	p := newCouple(t, saysSide)
	c := p.dial()
	r := bufio.NewReader(c)
	wantAnswer(t, c, r, "", "old")
	_, done := p.drain()
	p.awaitMoves(1) // the channel is not read yet
	moving := receive(t, p.old.seen, "the connection")
	if err := moving.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Close of a connection on its way: got %v, want %v", err, net.ErrClosed)
	}
	trackOf(moving).cut()
	p.runOld()
	p.runNew()
	receive(t, done, "the connection to move")
	wantAnswer(t, c, r, "", "new")
}
