//go:build unix

package grace

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
)

// A program that removes its socket before Listen gets one that clients find, and when
// it fails then, the old process gets its path back.
func TestSocketRemovedBeforeListen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	broken := false
	h := newHouse(t, func(g *generation) error {
		os.Remove(path)
		l, err := g.Listen("unix", path)
		if err != nil {
			return err
		}
		g.serve(l)
		if broken {
			return errors.New("broken")
		}
		return g.Ready()
	})
	h.opts = func(int) []Option { return []Option{Probation(0)} }
	g := h.first()
	for n := 2; n <= 3; n++ {
		done := g.upgrade()
		next := h.next()
		if err := receive(t, done, "Upgrade"); err != nil {
			t.Fatal(err)
		}
		receive(t, g.Done(), "Done of the old one")
		if got := ask(t, &net.UnixAddr{Net: "unix", Name: path}); got != fmt.Sprint(n) {
			t.Errorf("on the path answers %q, want generation %d", got, n)
		}
		g = next
	}
	broken = true
	done := g.upgrade()
	h.next()
	if err := receive(t, done, "Upgrade"); !errors.Is(err, ErrExited) {
		t.Errorf("Upgrade returned %v, want ErrExited", err)
	}
	answers := func() bool {
		c, err := net.Dial("unix", path)
		if err == nil {
			c.Close()
		}
		return err == nil
	}
	until(t, "the path of the one that serves", answers)
	if got := ask(t, &net.UnixAddr{Net: "unix", Name: path}); got != "3" {
		t.Errorf("on the path answers %q, want generation 3", got)
	}
	g.askStop()
	receive(t, g.Done(), "Done")
	if left, _ := os.ReadDir(filepath.Dir(path)); len(left) > 0 {
		t.Errorf("after the last stop %v are left", left)
	}
}
