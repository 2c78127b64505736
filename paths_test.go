//go:build unix

package grace

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// A roll back while a dropped socket's queue is being finished: the path comes
// back, and it is the same socket.
func TestPathComesBack(t *testing.T) {
	for _, network := range []string{"unix", "unixgram"} {
		t.Run(network, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "s")
			s := newSockets(nil, 0)
			end, err := s.openAny(network, path)
			if err != nil {
				t.Fatal(err)
			}
			dev, ino, _ := fileID(path)
			s.openGates()
			s.toHandOver()
			if network == "unix" { // something is queued, and nobody accepts it
				c, err := net.Dial(network, path)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
			}
			s.yield(s.snapshot(), nil)
			s.endAccept()
			until(t, "the removal of the path", func() bool { return !s.isEnding() })
			if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("clients find a socket that is to be gone: %v", err)
			}
			s.reopenGates()
			until(t, "the path", func() bool { _, err := os.Lstat(path); return err == nil })
			if d, i, _ := fileID(path); d != dev || i != ino {
				t.Error("it is another socket")
			}
			// And at the end nothing is left, hidden or not.
			s.yield(s.snapshot(), nil)
			s.endAccept()
			end()
			s.close()
			until(t, "an empty directory", func() bool { left, err := os.ReadDir(dir); return err == nil && len(left) == 0 })
		})
	}
}

// A program that removes its socket before Listen gets one that clients find, and
// when it fails then, old gets its path back.
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

// A socket that is bound, and does not listen yet, belongs to a process.
func TestBoundSocketStays(t *testing.T) {
	for name, typ := range map[string]int{"unix": unix.SOCK_STREAM, "unixpacket": unix.SOCK_SEQPACKET, "unixgram": unix.SOCK_DGRAM} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "s")
			fd, err := unix.Socket(unix.AF_UNIX, typ, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fd)
			if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
				t.Fatal(err)
			}
			for _, network := range []string{"unix", "unixpacket", "unixgram"} {
				if _, err := newSockets(nil, 0).openAny(network, path); !errors.Is(err, ErrPathInUse) {
					t.Errorf("%s: %v, want ErrPathInUse", network, err)
				}
			}
			if _, err := os.Lstat(path); err != nil {
				t.Error(err)
			}
		})
	}
}

// A socket that appears between the look at a stale one, or at our own, and the
// removal belongs to a process.
func TestSocketThatAppearsStays(t *testing.T) {
	for _, what := range []string{"a stale one", "our own", "hidden"} {
		t.Run(what, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "s")
			var other net.Listener
			was := beforeMove
			defer func() { beforeMove = was }()
			beforeMove = func(p string) {
				if p != path || other != nil {
					return
				}
				if err := os.Remove(path); err != nil {
					t.Error(err)
				}
				var err error
				if other, err = net.Listen("unix", path); err != nil {
					t.Error(err)
				}
			}
			if what == "a stale one" {
				leaveStale(t, "unix", path)
				if _, err := newSockets(nil, 0).openAny("unix", path); !errors.Is(err, syscall.EADDRINUSE) {
					t.Errorf("Listen returned %v, want EADDRINUSE", err)
				}
			} else {
				s := newSockets(nil, 0)
				end, err := s.openAny("unix", path)
				if err != nil {
					t.Fatal(err)
				}
				if what == "hidden" {
					s.openGates()
					s.yield(s.snapshot(), nil)
				}
				s.endAccept()
				until(t, "the removal of the path", func() bool { return !s.isEnding() })
				end()
			}
			if other == nil {
				t.Fatal("nothing appeared")
			}
			defer other.Close()
			c, err := net.Dial("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			c.Close()
			if left, _ := os.ReadDir(filepath.Dir(path)); len(left) != 1 {
				t.Errorf("left are %v, want the other's socket", left)
			}
		})
	}
}
