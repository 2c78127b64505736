package grace

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A copied listener is one whose descriptor another process has, too: here a copy,
// which is the same to the kernel.
type copied struct {
	*listener
	s  *sockets
	fd int
	at string // where it is found, also when its path is gone
}

func listenCopied(t *testing.T, network, addr string) *copied {
	t.Helper()
	s := newSockets(nil, 0)
	l, err := s.listen(net.ListenConfig{}, network, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	if err := s.openGates(); err != nil {
		t.Fatal(err)
	}
	c := &copied{listener: l, s: s, at: l.Addr().String()}
	l.sock.control(func(fd uintptr) { c.fd, err = unix.Dup(int(fd)) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(c.fd) })
	if l.sock.Path != "" {
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
	conn, err := net.DialTimeout(c.Addr().Network(), c.at, limit)
	if err == nil {
		conn.Close()
	}
	return err == nil
}

// listensStill asks a TCP socket, and makes no connection to it.
func listensStill(fd int) bool {
	on, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	return on == 1 && err == nil
}

// What waits in the queue at the last stop is served, and then the socket is none
// for anybody that has it.
func TestLastStopEndsTheSocket(t *testing.T) {
	dir := t.TempDir()
	for _, at := range []struct{ network, addr string }{
		{"tcp", "127.0.0.1:0"}, {"tcp4", ":0"}, {"unix", filepath.Join(dir, "s")}, {"unixpacket", filepath.Join(dir, "p")}, {"unix", "@" + dir},
	} {
		for _, end := range []string{"its queue is served", "its queue is left"} {
			t.Run(at.network+" "+filepath.Base(at.addr)+", "+end, func(t *testing.T) {
				l := listenCopied(t, at.network, at.addr)
				client, err := net.DialTimeout(at.network, l.at, limit)
				if err != nil {
					t.Fatal(err)
				}
				defer client.Close()
				l.s.endAccept()
				until(t, "the end of the path", func() bool { return !l.s.isEnding() })
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
					l.s.close()
				}
				if l.listens() {
					t.Error("clients still connect, to a copy that nobody serves")
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
			l.sock.Master = true
			l.s.endAccept()
			l.s.close()
		},
		"handed over": func(l *copied) {
			l.s.yield(l.s.toHandOver(), []int{0})
			l.s.endAccept()
			l.s.letGo()
			l.s.close()
		},
		"claimed by a new process that may begin": func(l *copied) {
			l.s.leaveEnd(l.s.toHandOver(), []int{0})
			l.s.endAccept()
			l.finished()
			l.s.close()
		},
		"taken back by the old process": func(l *copied) {
			l.sock.index = 0
			l.s.own(false)
			l.s.endAccept()
			l.s.close()
		},
		"closed while an old process stands by": func(l *copied) {
			l.sock.index = 0
			l.Close()
		},
		"closed after a roll back": func(l *copied) {
			l.s.yield(l.s.toHandOver(), nil)
			c, err := net.Dial("tcp", l.at) // so that its queue is not empty
			if err == nil {
				defer c.Close()
			}
			l.s.endAccept()
			l.s.reopenGates()
			l.s.settled(context.Background())
			l.Close()
		},
		"copied by the program": func(l *copied) {
			if f, err := l.File(); err == nil {
				f.Close()
			}
			l.s.endAccept()
			l.finished()
			l.s.close()
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := listenCopied(t, "tcp", "127.0.0.1:0")
			stop(l)
			if !l.listens() {
				t.Error("the socket has ended for the process that is to serve on it")
			}
			if _, err := l.acceptor().SyscallConn(); err == nil && l.sock.control(func(uintptr) {}) == nil {
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
				l.s.leaveEnd(l.s.toHandOver(), []int{0})
				client, err := net.DialTimeout(at.network, l.at, limit)
				if err != nil {
					t.Fatal(err)
				}
				defer client.Close()
				l.s.endAccept()
				if l.finished() {
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
				if !l.finished() {
					t.Error("the drain waits for what nobody can connect to")
				}
			})
		}
	}
}

// A stop between go and the first Accept of the new process: that one
// ends the sockets. The old process can't know how far it is.
func TestStopAfterGoLeavesTheSocketsToNew(t *testing.T) {
	addrs, went := make(chan net.Addr, 9), make(chan *generation, 1)
	serve := oneListener(addrs)
	h := newHouse(t, func(g *generation) error {
		if g.n == 1 {
			return serve(g)
		}
		if _, err := g.Listen("tcp", "127.0.0.1:0"); err != nil {
			return err
		}
		if err := g.handshake(); err != nil {
			return err
		}
		went <- g
		<-g.Done()
		return nil
	})
	g := h.first()
	<-addrs
	copied := -1
	g.socks.snapshot()[0].control(func(fd uintptr) { copied, _ = unix.Dup(int(fd)) })
	defer unix.Close(copied)
	g.upgrade()
	receive(t, went, "go")
	g.askStop()
	receive(t, g.Done(), "Done")
	if !listensStill(copied) {
		t.Error("old has ended the socket on which new may accept")
	}
}

// Close waits while a new process starts, which has all descriptors. The end of the
// socket does not: else what connects meanwhile is lost.
func TestLastStopDoesNotWaitForAStart(t *testing.T) {
	l := listenCopied(t, "tcp", "127.0.0.1:0")
	closed := make(chan bool, 1)
	err := withFDs(l.s.snapshot(), func([]*socket, []int) error {
		l.s.endAccept()
		go func() { closed <- l.finished() }()
		until(t, "the end of the socket", func() bool { return !listensStill(l.fd) })
		return nil
	})
	if err != nil || !receive(t, closed, "the close") {
		t.Errorf("withFDs: %v; or it is not finished", err)
	}
}
