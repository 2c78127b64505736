package sockets

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/julofinance/grace/v3/internal/testing/fdtest"
	"github.com/julofinance/grace/v3/internal/testing/wait"
	"golang.org/x/sys/unix"
)

// A copied listener is one whose descriptor another process has, too: here a copy,
// which is the same to the kernel.
type copied struct {
	*Listener
	s  *Set
	fd int
	at string // where it is found, also when its path is gone
}

func listenCopied(t *testing.T, network, addr string) *copied {
	t.Helper()
	s := New(nil, 0)
	l, err := s.Listen(net.ListenConfig{}, network, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	if err := s.OpenGates(); err != nil {
		t.Fatal(err)
	}
	c := &copied{Listener: l, s: s, at: l.Addr().String()}
	l.Sock.Control(func(fd uintptr) { c.fd, err = unix.Dup(int(fd)) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(c.fd) })
	if l.Sock.Path != "" {
		c.at = addr + ".2"
		if err := os.Link(addr, c.at); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.Remove(c.at) })
	}
	return c
}

// listens reports whether a client finds the socket: only the copy has it.
func (c *copied) listens() bool {
	conn, err := net.DialTimeout(c.Addr().Network(), c.at, wait.Limit)
	if err == nil {
		conn.Close()
	}
	return err == nil
}

// What waits in the queue at the last stop is served, and then the socket is none for
// any process that has it.
func TestLastStopEndsTheSocket(t *testing.T) {
	dir := t.TempDir()
	for _, at := range []struct{ network, addr string }{
		{"tcp", "127.0.0.1:0"}, {"tcp4", ":0"}, {"unix", filepath.Join(dir, "s")}, {"unixpacket", filepath.Join(dir, "p")}, {"unix", "@" + dir},
	} {
		for _, end := range []string{"its queue is served", "its queue is left"} {
			t.Run(at.network+" "+filepath.Base(at.addr)+", "+end, func(t *testing.T) {
				l := listenCopied(t, at.network, at.addr)
				client, err := net.DialTimeout(at.network, l.at, wait.Limit)
				if err != nil {
					t.Fatal(err)
				}
				defer client.Close()
				l.s.EndAccept()
				wait.Until(t, "the end of the path", func() bool { return !l.s.isEnding() })
				if end == "its queue is served" {
					c, err := l.Accept()
					if err != nil {
						t.Fatalf("Accept of what was queued: %v", err)
					}
					c.Close()
					if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
						t.Errorf("Accept after it returned %v, want net.ErrClosed", err)
					}
				} else {
					l.s.Close()
				}
				if l.listens() {
					t.Error("clients still connect, to a copy that no process serves")
				}
				if strings.HasPrefix(at.addr, "@") {
					return // the name is taken until the copy is closed, see unix(7)
				}
				again, err := net.Listen(at.network, l.Addr().String())
				if err != nil {
					t.Fatalf("the next start: %v", err)
				}
				again.Close()
			})
		}
	}
}

// What another process serves on, or may, is only closed.
func TestSocketOfOthersDoesNotEnd(t *testing.T) {
	for name, stop := range map[string]func(*copied){
		"of a master": func(l *copied) {
			l.Sock.Master = true
			l.s.EndAccept()
			l.s.Close()
		},
		"handed over": func(l *copied) {
			l.s.Yield(l.s.ToHandOver(), []int{0})
			l.s.EndAccept()
			l.s.LetGo()
			l.s.Close()
		},
		"claimed by a new process that may begin": func(l *copied) {
			l.s.LeaveEnd(l.s.ToHandOver(), []int{0})
			l.s.EndAccept()
			l.Finished()
			l.s.Close()
		},
		"taken back by the old process": func(l *copied) {
			l.Sock.Index = 0
			l.s.Own(false)
			l.s.EndAccept()
			l.s.Close()
		},
		"closed while an old process stands by": func(l *copied) {
			l.Sock.Index = 0
			l.Close()
		},
		"closed after a roll back": func(l *copied) {
			l.s.Yield(l.s.ToHandOver(), nil)
			c, err := net.Dial("tcp", l.at) // so that its queue is not empty
			if err == nil {
				defer c.Close()
			}
			l.s.EndAccept()
			l.s.ReopenGates()
			l.s.Settled(context.Background())
			l.Close()
		},
		"copied by the program": func(l *copied) {
			if f, err := l.File(); err == nil {
				f.Close()
			}
			l.s.EndAccept()
			l.Finished()
			l.s.Close()
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := listenCopied(t, "tcp", "127.0.0.1:0")
			stop(l)
			if !l.listens() {
				t.Error("the socket has ended for the process that is to serve on it")
			}
			if _, err := l.acceptor().SyscallConn(); err == nil && l.Sock.Control(func(uintptr) {}) == nil {
				t.Error("this process has not closed its descriptor")
			}
		})
	}
}

// Two processes end, and share a queue: one has emptied it, and ended the socket,
// before the other has looked, or while it waits there.
func TestSocketThatEndsElsewhere(t *testing.T) {
	for _, at := range []struct{ network, addr string }{{"tcp", "127.0.0.1:0"}, {"unix", "@" + t.Name()}} {
		for _, when := range []string{"before Accept", "in Accept"} {
			t.Run(at.network+" "+when, func(t *testing.T) {
				l := listenCopied(t, at.network, at.addr)
				l.s.LeaveEnd(l.s.ToHandOver(), []int{0})
				client, err := net.DialTimeout(at.network, l.at, wait.Limit)
				if err != nil {
					t.Fatal(err)
				}
				defer client.Close()
				l.s.EndAccept()
				if l.Finished() {
					t.Fatal("finished, with a connection in the queue")
				}
				fd, _, err := unix.Accept(l.fd)
				if err != nil {
					t.Fatal(err)
				}
				unix.Close(fd)
				if err := unix.Shutdown(l.fd, unix.SHUT_RD); err != nil {
					t.Fatal(err)
				}
				if when == "in Accept" && !l.outlives(l.acceptor()) {
					t.Error("what Accept was told is an error for the server")
				}
				if !l.Finished() {
					t.Error("the drain waits for what no client can connect to")
				}
			})
		}
	}
}

// Close waits while a new process starts, which has all descriptors. The end of the
// Socket does not: else what connects meanwhile is lost.
func TestLastStopDoesNotWaitForAStart(t *testing.T) {
	l := listenCopied(t, "tcp", "127.0.0.1:0")
	closed := make(chan bool, 1)
	err := WithFDs(l.s.Snapshot(), func([]*Socket, []int) error {
		l.s.EndAccept()
		go func() { closed <- l.Finished() }()
		wait.Until(t, "the end of the socket", func() bool { return !fdtest.ListensStill(l.fd) })
		return nil
	})
	if err != nil || !wait.For(t, closed, "the close") {
		t.Errorf("withFDs: %v; or it is not finished", err)
	}
}
