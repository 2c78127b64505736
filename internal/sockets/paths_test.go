//go:build unix

package sockets

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/julofinance/grace/v3/internal/testing/wait"
	"golang.org/x/sys/unix"
)

// A roll back while a dropped socket's queue is being finished: the path comes
// back, and it is the same socket.
func TestPathComesBack(t *testing.T) {
	for _, network := range []string{"unix", "unixgram"} {
		t.Run(network, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "s")
			s := New(nil, 0)
			end, err := s.openAny(network, path)
			if err != nil {
				t.Fatal(err)
			}
			dev, ino, _ := fileID(path)
			s.OpenGates()
			s.ToHandOver()
			if network == "unix" { // something is queued, and no process accepts it
				c, err := net.Dial(network, path)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
			}
			s.Yield(s.Snapshot(), nil)
			s.EndAccept()
			wait.Until(t, "the removal of the path", func() bool { return !s.isEnding() })
			if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("clients find a socket that is to be gone: %v", err)
			}
			s.ReopenGates()
			wait.Until(t, "the path", func() bool { _, err := os.Lstat(path); return err == nil })
			if d, i, _ := fileID(path); d != dev || i != ino {
				t.Error("it is another socket")
			}
			// And at the end nothing is left, hidden or not.
			s.Yield(s.Snapshot(), nil)
			s.EndAccept()
			end()
			s.Close()
			wait.Until(t, "an empty directory", func() bool { left, err := os.ReadDir(dir); return err == nil && len(left) == 0 })
		})
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
				if _, err := New(nil, 0).openAny(network, path); !errors.Is(err, ErrAnswered) {
					t.Errorf("%s: %v, want ErrAnswered", network, err)
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
			defer beforeMove.Store(nil)
			appear := func(p string) {
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
			beforeMove.Store(&appear)
			if what == "a stale one" {
				leaveStale(t, "unix", path)
				if _, err := New(nil, 0).openAny("unix", path); !errors.Is(err, syscall.EADDRINUSE) {
					t.Errorf("Listen returned %v, want EADDRINUSE", err)
				}
			} else {
				s := New(nil, 0)
				end, err := s.openAny("unix", path)
				if err != nil {
					t.Fatal(err)
				}
				if what == "hidden" {
					s.OpenGates()
					s.Yield(s.Snapshot(), nil)
				}
				s.EndAccept()
				wait.Until(t, "the removal of the path", func() bool { return !s.isEnding() })
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
