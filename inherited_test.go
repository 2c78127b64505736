//go:build unix

package grace

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// TestInherited: what was handed over is listed by the names of before, until it is
// asked for, or Ready has left it to the old process.
func TestInherited(t *testing.T) {
	path := filepath.Join(t.TempDir(), "u")
	h := newHouse(t, func(g *generation) error {
		want := []Inherited{{"listener", "tcp", "127.0.0.1:0"}, {"packet", "udp", "127.0.0.1:0"}, {"listener", "unix", path}, {"file", "", "null"}}
		list := g.Inherited()
		if g.n == 1 {
			want = []Inherited{}
		}
		if !slices.Equal(list, want) {
			t.Errorf("generation %d has inherited %v, want %v", g.n, list, want)
		}
		_, err1 := g.Listen("tcp", "127.0.0.1:0")
		_, err2 := g.ListenPacket("udp", "127.0.0.1:0")
		if g.n == 1 {
			f, err := os.Open(os.DevNull)
			if err != nil {
				return err
			}
			t.Cleanup(func() { f.Close() })
			_, err3 := g.Listen("unix", path)
			if err := errors.Join(err, err1, err2, err3, g.AddFile("null", f)); err != nil {
				return err
			}
			return g.Ready()
		}
		if list, want := g.Inherited(), want[2:]; !slices.Equal(list, want) {
			t.Errorf("left to be asked for are %v, want %v", list, want)
		}
		err := errors.Join(err1, err2, g.Ready())
		if list := g.Inherited(); len(list) != 0 {
			t.Errorf("after Ready there are still %v", list)
		}
		return err
	})
	h.opts = func(int) []Option { return []Option{Probation(0)} }
	g := h.first()
	done := g.upgrade()
	n := h.next()
	if err := errors.Join(g.err, n.err, receive(t, done, "Upgrade")); err != nil {
		t.Fatal(err)
	}
	n.askStop()
}
