//go:build unix

package sockets

import (
	"testing"

	"github.com/julofinance/grace/v3/internal/testing/wait"
)

// TestEndWaitsForNoStart: the drain, and a second Accept, do not wait for a listener that is
// being closed, which can't be while a new process is started with it.
func TestEndWaitsForNoStart(t *testing.T) {
	s := New(nil, 0)
	l, err := s.Listen(reusable, "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s.OpenGates()
	l.Sock.Closing.Lock() // a start that hangs
	s.EndAccept()
	if !l.park() {
		t.Error("the queue is empty, and the listener does not park")
	}
	over := make(chan struct{})
	go func() {
		l.park()
		s.Drain(t.Context(), nil)
		close(over)
	}()
	wait.For(t, over, "the end of the drain")
	l.Sock.Closing.Unlock()
}
