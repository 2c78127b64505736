package sockets

import (
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/control"
	"github.com/julofinance/grace/v3/internal/fd"
	"github.com/julofinance/grace/v3/internal/testing/wait"
)

// The two ends of a pair reach each other, and are of the kind that a listener accepts.
func TestProbePair(t *testing.T) {
	for network, want := range map[string]string{"tcp": "tcp", "unix": "unix", "unixpacket": "unixpacket"} {
		near, far, err := probePair(t.Context(), network)
		if err != nil {
			t.Fatalf("%s: %v", network, err)
		}
		defer near.Close()
		defer far.Close()
		far.SetDeadline(time.Now().Add(wait.Limit))
		b := make([]byte, 9)
		if _, err := near.Write([]byte("hello")); err != nil {
			t.Fatalf("%s: %v", network, err)
		}
		if n, err := far.Read(b); string(b[:n]) != "hello" {
			t.Errorf("%s: read %q, %v, want hello", network, b[:n], err)
		}
		if got := far.LocalAddr().Network(); got != want {
			t.Errorf("%s: the pair is %s, want %s", network, got, want)
		}
	}
}

// A connection that no listener takes is closed: its other end sees that.
func TestTakeProbe(t *testing.T) {
	s := New(nil, 0)
	defer s.Close()
	if _, err := s.Listen(net.ListenConfig{}, "tcp", "127.0.0.1:0"); err != nil { // its index is -1
		t.Fatal(err)
	}
	for _, payload := range []string{"", "123", "\x00\x00\x00\x00", "\xff\xff\xff\xff", "\x00\x00\x00\x00\x00"} {
		near, far, err := probePair(t.Context(), "unix")
		if err != nil {
			t.Fatal(err)
		}
		defer near.Close()
		raw, err := far.(*net.UnixConn).File()
		if err != nil {
			t.Fatal(err)
		}
		n, err := fd.Dup(raw)
		if err != nil {
			t.Fatal(err)
		}
		raw.Close()
		far.Close()
		s.TakeProbe(control.Message{Type: MsgProbe, Payload: []byte(payload), FDs: []int{n}})
		near.SetDeadline(time.Now().Add(wait.Limit))
		if n, err := near.Read(make([]byte, 1)); n > 0 || err == nil || os.IsTimeout(err) || !strings.Contains(err.Error(), "EOF") {
			t.Errorf("payload %q: read %d, %v, want the end", payload, n, err)
		}
	}
	s.TakeProbe(control.Message{Type: MsgProbe, Payload: make([]byte, 4)}) // the kernel has dropped the descriptor
}
