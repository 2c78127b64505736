package sockets

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/testing/wait"
	"golang.org/x/sys/unix"
)

// shortQueue listens with a queue of two connections, over MPTCP if asked for.
func shortQueue(t *testing.T, mptcp bool) (*Socket, net.Listener) {
	t.Helper()
	var lc net.ListenConfig
	lc.SetMultipathTCP(mptcp)
	s := New(nil, 0)
	l, err := s.Listen(lc, "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	if err := s.OpenGates(); err != nil {
		t.Fatal(err)
	}
	sock := s.Snapshot()[0]
	sock.Control(func(n uintptr) { err = unix.Listen(int(n), 1) })
	if err != nil {
		t.Fatal(err)
	}
	return sock, l
}

// fill lets n clients connect.
func fill(t *testing.T, l net.Listener, n int) {
	t.Helper()
	for range n {
		c, err := net.DialTimeout("tcp", l.Addr().String(), wait.Limit)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
	}
}

// A queue that is full, and from which nothing is accepted, is told from one that is not,
// and from one that is full again after each Accept.
func TestFullQueue(t *testing.T) {
	for name, mptcp := range map[string]bool{"TCP": false, "MPTCP": true} {
		t.Run(name, func(t *testing.T) {
			sock, l := shortQueue(t, mptcp)
			if fullQueue(sock) != nil {
				t.Fatal("an empty queue is full")
			}
			fill(t, l, 2)
			var q *queue
			wait.Until(t, "a full queue", func() bool { q = fullQueue(sock); return q != nil })
			defer q.close()
			for range 2 {
				if !q.stands() {
					t.Error("nothing is accepted, and it is not seen")
				}
			}
			accept := func() {
				c, err := l.Accept()
				if err != nil {
					t.Fatal(err)
				}
				c.Close()
			}
			accept()
			if q.stands() {
				t.Error("a connection was accepted, and it is not seen")
			}
			fill(t, l, 1)
			wait.Until(t, "a full queue", q.isFull)
			if q.stands() {
				t.Error("a connection was accepted and another one has come, and it is not seen")
			}
			if !q.stands() {
				t.Error("nothing is accepted any more, and it is not seen")
			}
		})
	}
}

func TestWatchQueues(t *testing.T) {
	sock, l := shortQueue(t, false)
	all := []*Socket{sock}
	if err := WatchQueues(t.Context(), all, time.Millisecond); err != nil {
		t.Errorf("the queue is empty: %v", err)
	}
	fill(t, l, 2)
	wait.Until(t, "a full queue", func() bool {
		full := fullQueues(all)
		closeQueues(full)
		return len(full) > 0
	})
	err := WatchQueues(t.Context(), all, time.Millisecond)
	if err == nil || !strings.Contains(err.Error(), "it has accepted no connection on tcp "+l.Addr().String()+" for 2s, while the queue there was full, with 2") {
		t.Errorf("got %v, want an error that names the socket", err)
	}
	if err := WatchQueues(t.Context(), all, 0); err != nil {
		t.Errorf("without probation: %v", err)
	}
	result := make(chan error, 1)
	go func() { result <- WatchQueues(t.Context(), all, time.Millisecond) }()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if err := wait.For(t, result, "WatchQueues"); err != nil {
		t.Errorf("a connection was accepted: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := WatchQueues(ctx, all, time.Hour); err != context.Canceled {
		t.Errorf("got %v, want that the context has ended", err)
	}
}
