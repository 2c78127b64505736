//go:build unix

package sockets

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/julofinance/grace/v3/internal/testing/wait"
)

// TestCutThatIsLate: a drain whose time is up was called off. What is there may have been
// accepted since, and is not cut off.
func TestCutThatIsLate(t *testing.T) {
	s := New(nil, 0)
	defer s.Close()
	l, err := s.Listen(reusable, "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.OpenGates()
	client, err := net.DialTimeout("tcp", l.Addr().String(), wait.Limit)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s.Cut(ctx)
	if _, err := c.Write([]byte("x")); err != nil {
		t.Errorf("the connection was cut off: %v", err)
	}
}

// TestPathIsHiddenInTheDrainOnly: the drain was called off before it came to hide the path
// of a unix socket, which stays where clients find it.
func TestPathIsHiddenInTheDrainOnly(t *testing.T) {
	s := New(nil, 0)
	defer s.Close()
	path := filepath.Join(t.TempDir(), "s")
	l, err := s.Listen(net.ListenConfig{}, "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s.OpenGates()
	var moved atomic.Bool
	f := func(p string) { moved.Store(moved.Load() || p == path) }
	beforeMove.Store(&f)
	defer beforeMove.Store(nil)
	l.reopening.Lock() // the disk takes its time
	s.Yield(nil, nil)
	s.EndAccept()
	s.ReopenGates()
	l.reopening.Unlock()
	wait.Until(t, "the drain to leave the path alone", func() bool { return !s.isEnding() })
	s.Settled(t.Context())
	if moved.Load() {
		t.Error("clients don't find the path for a moment")
	}
	if _, err := os.Lstat(path); err != nil {
		t.Error(err)
	}
}

// TestUnwantedIsDroppedOnce: the program closes a listener in probation, and an upgrade is
// rolled back, and then another one. By then its path may be that of another socket, whose
// file has got the number of its own.
func TestUnwantedIsDroppedOnce(t *testing.T) {
	s := New(nil, 0)
	defer s.Close()
	path := filepath.Join(t.TempDir(), "s")
	l, err := s.Listen(net.ListenConfig{}, "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s.OpenGates()
	s.Yield(s.Snapshot(), []int{0})
	l.Close()
	s.ReopenGates()
	wait.Until(t, "the listener to be dropped", l.IsShut)
	l.reopening.Lock() // until the end of that
	other, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	l.Sock.Dev, l.Sock.Ino, err = fileID(path)
	l.reopening.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	l.drop() // as ReopenGates does
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the path of the other socket: %v", err)
	}
}
