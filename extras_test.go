//go:build unix

package grace

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/control"
	"github.com/julofinance/grace/v3/internal/fd"
)

func TestFilesAndConnections(t *testing.T) {
	name := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(name, []byte("0123456789"), 0o600); err != nil {
		t.Fatal(err)
	}
	ours, theirs, err := unixPair()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	read := make(chan string, 9)
	h := newHouse(t, func(g *generation) error {
		var f *os.File
		var c net.Conn
		if g.n == 1 {
			if f, err = os.Open(name); err != nil {
				return err
			}
			c = theirs
			if err := errors.Join(g.AddFile("data", f), g.AddFile("closed", f), g.AddFile("closed", nil), g.AddConn("peer", c)); err != nil {
				return err
			}
			gone, err := os.Open(name)
			if err != nil {
				return err
			}
			if err := g.AddFile("gone", gone); err != nil {
				return err
			}
			gone.Close()
		} else {
			for _, name := range []string{"closed", "gone", "peer"} {
				if f, err := g.File(name); f != nil || err != nil {
					t.Errorf("generation %d: File(%q) = %v, %v, want none", g.n, name, f, err)
				}
			}
			var err error
			if f, err = g.File("data"); err != nil || f == nil {
				t.Errorf("generation %d: File = %v, %v", g.n, f, err)
				return ErrProtocol
			}
			if again, _ := g.File("data"); again != nil {
				t.Error("a second File of the same name is not nil")
			}
			if c, err = g.Conn("peer"); err != nil || c == nil {
				t.Errorf("generation %d: Conn = %v, %v", g.n, c, err)
				return ErrProtocol
			}
		}
		b := make([]byte, 2)
		if _, err := io.ReadFull(f, b); err != nil {
			return err
		}
		c.Write(b)
		read <- string(b)
		return g.Ready()
	})
	h.opts = func(int) []Option { return []Option{Probation(0)} }
	g := h.first()
	for _, want := range []string{"01", "23", "45"} {
		if g.err != nil {
			t.Fatal(g.err)
		}
		// The open file is shared, its offset too.
		if got := <-read; got != want {
			t.Errorf("generation %d read %q, want %q", g.n, got, want)
		}
		b := make([]byte, 2)
		ours.SetDeadline(time.Now().Add(limit))
		if _, err := io.ReadFull(ours, b); err != nil || string(b) != want {
			t.Errorf("from the connection: %q, %v, want %q", b, err, want)
		}
		done := g.upgrade()
		g = h.next()
		if err := receive(t, done, "Upgrade"); err != nil {
			t.Fatal(err)
		}
	}
	if err := g.AddConn("pipe", pipeConn(t)); err == nil || !strings.Contains(err.Error(), "no descriptor") {
		t.Errorf("AddConn of a net.Pipe: %v, want an error", err)
	}
	g.askStop()
}

func pipeConn(t *testing.T) net.Conn {
	a, b := net.Pipe()
	t.Cleanup(func() { a.Close(); b.Close() })
	return a
}

func unixPair() (*net.UnixConn, *net.UnixConn, error) {
	a, n, err := control.Pair()
	if err != nil {
		return nil, nil, err
	}
	b, err := fd.NewUnixConn(n)
	return a, b, err
}
