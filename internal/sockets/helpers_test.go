//go:build unix

package sockets

import (
	"io"
	"net"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/testing/wait"
)

// ask gives what the server at a says before it closes the connection.
func ask(t *testing.T, a net.Addr) string {
	t.Helper()
	c, err := net.DialTimeout(a.Network(), a.String(), wait.Limit)
	if err != nil {
		t.Fatalf("dial: %v", err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(wait.Limit))
	b, err := io.ReadAll(c)
	if err != nil {
		t.Fatalf("read the answer: %v", err)
	}
	return string(b)
}
