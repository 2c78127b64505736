//go:build unix

package sockets

import (
	"io"
	"net"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/testing/wait"
)

const limit = wait.Limit // of every wait

// receive is wait.For, and until wait.Until.
func receive[T any](t testing.TB, c <-chan T, what string) T {
	t.Helper()
	return wait.For(t, c, what)
}

func until(t testing.TB, what string, cond func() bool) {
	t.Helper()
	wait.Until(t, what, cond)
}

// ask gives what the server at a says before it closes the connection.
func ask(t *testing.T, a net.Addr) string {
	t.Helper()
	c, err := net.DialTimeout(a.Network(), a.String(), limit)
	if err != nil {
		t.Fatalf("dial: %v", err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(limit))
	b, err := io.ReadAll(c)
	if err != nil {
		t.Fatalf("read the answer: %v", err)
	}
	return string(b)
}
