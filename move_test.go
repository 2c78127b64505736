//go:build linux

package grace

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
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
