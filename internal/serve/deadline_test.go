//go:build unix

package serve

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/gate"
	"github.com/julofinance/grace/v3/internal/sockets"
	"github.com/julofinance/grace/v3/internal/testing/wait"
)

// TestDeadlines: those of a connection of ours are those of net.TCPConn, though a read
// deadline is set only when a goroutine reads.
func TestDeadlines(t *testing.T) {
	for name, listen := range map[string]func(t *testing.T) net.Listener{
		"plain": func(t *testing.T) net.Listener {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { ln.Close() })
			return ln
		},
		"ours": func(t *testing.T) net.Listener {
			u, ln := newProcess(t)
			t.Cleanup(u.askStop)
			if err := u.Ready(); err != nil {
				t.Fatal(err)
			}
			return ln
		},
	} {
		t.Run(name, func(t *testing.T) {
			ln := listen(t)
			for _, test := range deadlineTests {
				t.Run(test.name, func(t *testing.T) {
					client, c := connected(t, ln)
					watch := time.AfterFunc(wait.Limit, func() { // a Read that no deadline ends
						t.Error("still waiting")
						client.Close()
					})
					defer watch.Stop()
					test.run(t, c.(deadlineConn), client)
				})
			}
		})
	}
}

// connected gives both ends of a connection to ln.
func connected(t *testing.T, ln net.Listener) (client, accepted net.Conn) {
	t.Helper()
	client, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	if accepted, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { accepted.Close() })
	return client, accepted
}

type deadlineConn interface {
	net.Conn
	io.WriterTo
	syscall.Conn
}

var deadlineTests = []struct {
	name string
	run  func(t *testing.T, c deadlineConn, client net.Conn)
}{
	{"future", func(t *testing.T, c deadlineConn, _ net.Conn) {
		c.SetReadDeadline(time.Now().Add(time.Millisecond))
		wantTimeout(t, readByte(c))
		wantTimeout(t, readByte(c))
	}},
	{"past and taken back", func(t *testing.T, c deadlineConn, client net.Conn) {
		client.Write([]byte("x"))
		for range 2 {
			c.SetReadDeadline(gate.LongAgo)
			wantTimeout(t, readByte(c))
		}
		c.SetReadDeadline(time.Time{})
		wantNone(t, readByte(c))
	}},
	{"future and taken back", func(t *testing.T, c deadlineConn, client net.Conn) {
		c.SetReadDeadline(time.Now().Add(time.Millisecond))
		wantTimeout(t, readByte(c))
		c.SetDeadline(time.Time{})
		client.Write([]byte("x"))
		wantNone(t, readByte(c))
	}},
	{"while a Read waits", func(t *testing.T, c deadlineConn, client net.Conn) {
		for range 100 { // before, while and after it begins
			read := make(chan error)
			go func() { read <- readByte(c) }()
			c.SetReadDeadline(gate.LongAgo)
			wantTimeout(t, <-read)
			c.SetReadDeadline(time.Time{})
		}
		client.Write([]byte("x"))
		wantNone(t, readByte(c))
	}},
	{"while two Reads wait", func(t *testing.T, c deadlineConn, client net.Conn) {
		read := make(chan error)
		for range 2 {
			go func() { read <- readByte(c) }()
		}
		if ours := sockets.TrackOf(c); ours != nil {
			wait.Until(t, "two Reads", func() bool {
				return ours.State().Reading == 2
			})
		}
		client.Write([]byte("x"))
		wantNone(t, <-read)
		c.SetReadDeadline(gate.LongAgo)
		wantTimeout(t, <-read)
	}},
	{"SyscallConn", func(t *testing.T, c deadlineConn, _ net.Conn) {
		c.SetReadDeadline(time.Now().Add(time.Millisecond))
		raw, err := c.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		waits := func() error {
			first := true
			return raw.Read(func(uintptr) bool { done := !first; first = false; return done })
		}
		wantTimeout(t, waits())
		c.SetReadDeadline(time.Time{})
		wantNone(t, raw.Read(func(uintptr) bool { return true }))
		c.SetReadDeadline(gate.LongAgo)
		wantTimeout(t, waits())
	}},
	{"WriteTo", func(t *testing.T, c deadlineConn, _ net.Conn) {
		c.SetReadDeadline(gate.LongAgo)
		_, err := c.WriteTo(new(bytes.Buffer))
		wantTimeout(t, err)
	}},
	{"NetConn", func(t *testing.T, c deadlineConn, _ net.Conn) {
		ours, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			return // a net.TCPConn
		}
		c.SetReadDeadline(gate.LongAgo)
		inner := ours.NetConn()
		wantTimeout(t, readByte(inner))
		inner.SetWriteDeadline(gate.LongAgo)
		c.SetDeadline(time.Time{})
		_, err := inner.Write([]byte("x"))
		wantNone(t, err)
	}},
	{"Write", func(t *testing.T, c deadlineConn, _ net.Conn) {
		c.SetWriteDeadline(time.Time{})
		for range 2 {
			c.SetWriteDeadline(gate.LongAgo)
			_, err := c.Write([]byte("x"))
			wantTimeout(t, err)
			c.SetWriteDeadline(time.Time{})
			_, err = c.Write([]byte("x"))
			wantNone(t, err)
		}
	}},
	{"closed", func(t *testing.T, c deadlineConn, _ net.Conn) {
		c.SetReadDeadline(gate.LongAgo)
		c.Close()
		for _, err := range []error{
			readByte(c), c.SetReadDeadline(time.Time{}), c.SetWriteDeadline(time.Time{}), c.SetDeadline(gate.LongAgo),
		} {
			if !errors.Is(err, net.ErrClosed) {
				t.Errorf("%v, want %v", err, net.ErrClosed)
			}
		}
	}},
}

func readByte(c net.Conn) error {
	_, err := io.ReadFull(c, make([]byte, 1))
	return err
}

func wantTimeout(t *testing.T, err error) {
	t.Helper()
	op, ok := err.(*net.OpError)
	if !ok || !op.Timeout() || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%T %[1]v, want a timeout", err)
	}
}

func wantNone(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}
