package tlstest

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// TestNumbers: a record that was sealed with a number of before is found, though the client
// has not read it.
func TestNumbers(t *testing.T) {
	for _, c := range []struct{ again, want string }{
		{"", ""},
		{"b", "record 2 after the handshake is sealed with number 1 of key 0, want 2 of 0"},
	} {
		cert, trust := Certificate(t)
		trust.ServerName = "example.com"
		near, far := net.Pipe()
		w := &repeater{Conn: far}
		server := tls.Server(w, &tls.Config{Certificates: []tls.Certificate{cert}, SessionTicketsDisabled: true})
		r := &recorder{TB: t}
		client := tls.Client(Numbers(r, near, trust))
		over := make(chan struct{})
		go func() {
			defer close(over)
			defer far.Close()
			server.Write([]byte("a"))
			w.again = c.again != ""
			server.Write([]byte("b"))
		}()
		client.SetReadDeadline(time.Now().Add(time.Minute))
		if _, err := io.ReadFull(client, make([]byte, 2)); err != nil {
			t.Fatal(err)
		}
		select {
		case <-over:
		case <-time.After(time.Minute):
			t.Fatal("the server has not written all within a minute")
		}
		for _, f := range r.cleanups {
			f()
		}
		if got := strings.Join(r.errors, "\n"); got != c.want {
			t.Errorf("found: %q, want %q", got, c.want)
		}
		near.Close()
	}
}

// A repeater writes each record twice.
type repeater struct {
	net.Conn
	again bool
}

func (r *repeater) Write(p []byte) (int, error) {
	n, err := r.Conn.Write(p)
	if r.again && err == nil {
		n, err = r.Conn.Write(p)
	}
	return n, err
}

// A recorder remembers errors.
type recorder struct {
	testing.TB
	errors   []string
	cleanups []func()
}

func (r *recorder) Cleanup(f func()) { r.cleanups = append(r.cleanups, f) }

func (r *recorder) Errorf(format string, args ...any) {
	r.errors = append(r.errors, fmt.Sprintf(format, args...))
}
