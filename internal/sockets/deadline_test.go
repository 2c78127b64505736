//go:build unix

package sockets

import (
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/gate"
	"github.com/julofinance/grace/v3/internal/testing/wait"
)

// TestDeadlinesOfConnectionTakenBack: code that still has the connection as it was
// before it was to move, a ConnState hook say, does nothing to what it is now.
func TestDeadlinesOfConnectionTakenBack(t *testing.T) {
	s := New(nil, 0)
	ln, err := s.Listen(net.ListenConfig{}, "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	if err := s.OpenGates(); err != nil {
		t.Fatal(err)
	}
	client, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	accepted, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	before := accepted.(*TCPConn)
	before.Track.mu.Lock()
	before.Track.life = lifeMoving // as Close does with one that is to move
	before.Track.mu.Unlock()
	before.Track.Listener.TakeBack(&before.Track, nil, nil, false)
	before.Track.mu.Lock() // a deadline that is pending; not before, since TakeBack hands it on
	before.Track.deadline.set(deadlinePending)
	before.Track.Want = gate.LongAgo
	before.Track.mu.Unlock()
	now, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer now.Close()
	before.SyscallConn()
	before.NetConn()
	_, copied := before.WriteTo(io.Discard)
	for _, err := range []error{copied, before.SetWriteDeadline(gate.LongAgo), before.SetReadDeadline(gate.LongAgo)} {
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("%v, want %v", err, net.ErrClosed)
		}
	}
	client.Write([]byte("x"))
	defer time.AfterFunc(wait.Limit, func() { client.Close() }).Stop() // a deadline of now's would hide one of before's
	if _, err := now.Read(make([]byte, 1)); err != nil {
		t.Errorf("Read: %v", err)
	}
	if _, err := now.Write([]byte("x")); err != nil {
		t.Errorf("Write: %v", err)
	}
}
