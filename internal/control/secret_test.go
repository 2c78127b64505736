//go:build unix

package control

import (
	"bytes"
	"testing"

	"github.com/julofinance/grace/v3/internal/fd"
	"github.com/julofinance/grace/v3/internal/testing/wait"
)

// TestSecretMessage: when it is written, or can't be, there is no copy of it; what is not
// secret stays the sender's.
func TestSecretMessage(t *testing.T) {
	conn, n, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	other, err := fd.NewUnixConn(n)
	if err != nil {
		t.Fatal(err)
	}
	from, to := New(conn), New(other)
	defer to.Close()
	send := func(secret bool) (payload, frame []byte) {
		t.Helper()
		m := Message{Type: 'x', Payload: []byte("secret"), Secret: secret}
		sent := make(chan error, 1)
		o := newOutgoing(m, func(err error) { sent <- err })
		frame = o.frame
		from.enqueue(o)
		wait.For(t, sent, "the message to be sent, or not")
		return m.Payload, frame
	}
	for _, closed := range []bool{false, true} {
		if closed {
			from.Close()
		}
		if payload, _ := send(false); string(payload) != "secret" {
			t.Errorf("closed %v: %q is left of a message that is not secret", closed, payload)
		}
		if payload, frame := send(true); bytes.ContainsAny(payload, "secret") || bytes.ContainsAny(frame, "secret") {
			t.Errorf("closed %v: %q and %q are left", closed, payload, frame)
		}
	}
	for range 2 {
		m, err := to.Next()
		if err != nil || string(m.Payload) != "secret" {
			t.Fatalf("%q, error %v", m.Payload, err)
		}
		if left := to.in[:cap(to.in)]; bytes.Contains(left[len(to.in):], []byte("secret")) {
			t.Errorf("%q is left of what was read", left)
		}
	}
}
