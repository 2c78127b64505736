//go:build linux

package integration_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/proctest"
)

// A connector connects all the time.
type connector struct {
	t      testing.TB
	cancel context.CancelFunc
	done   chan struct{}
	made   int
	failed []error
}

// startConnecting connects again and again, and sends nothing.
func (s *server) startConnecting() *connector {
	ctx, cancel := context.WithCancel(context.Background())
	c := &connector{t: s.t, cancel: cancel, done: make(chan struct{})}
	begun := make(chan struct{})
	go func() {
		defer close(c.done)
		// The queue of a socket that no process accepts on yet must not fill up.
		tick := time.NewTicker(500 * time.Microsecond)
		defer tick.Stop()
		for ctx.Err() == nil {
			conn, err := net.DialTimeout("tcp", s.addr, proctest.Limit)
			if err != nil {
				c.failed = append(c.failed, err)
			} else {
				conn.Close()
			}
			if c.made++; c.made == 1 {
				close(begun)
			}
			<-tick.C
		}
	}()
	<-begun
	return c
}

// mustBeNone ends it, and fails the test if a connection was refused.
func (c *connector) mustBeNone() {
	c.t.Helper()
	c.cancel()
	<-c.done
	if len(c.failed) > 0 {
		c.t.Errorf("%d of %d connections failed: %v", len(c.failed), c.made, c.failed[0])
	}
}

// TestOldIsKilled kills the old process by SIGKILL at each step of the hand-over. From
// the moment at which the new one has the sockets no client is refused, and the new one
// carries on.
func TestOldIsKilled(t *testing.T) {
	for _, step := range []string{"start", "manifest", "listen", "check"} {
		t.Run("new is at "+step, func(t *testing.T) {
			s := startServer(t)
			old := s.Pid()
			s.misbehave("pause@" + step)
			s.Signal(old, syscall.SIGUSR2)
			new := atoi(t, s.WaitLine(`^paused at \S+ pid=(\d+)`)[1])
			refused := s.startConnecting()
			s.Signal(old, syscall.SIGKILL)
			s.WaitExit(old)
			waiting := s.ask() // no process accepts now
			s.Signal(new, syscall.SIGUSR1)
			if pid := waiting(); pid != new {
				t.Errorf("process %d has answered, want %d", pid, new)
			}
			s.mustCarryOn(new, refused)
		})
	}
	t.Run("new has not begun", func(t *testing.T) {
		r := newRelease(t)
		s := startServerAs(t, proctest.Command{Path: r.path})
		old := s.Pid()
		fifo := filepath.Join(t.TempDir(), "fifo")
		if err := syscall.Mkfifo(fifo, 0o600); err != nil {
			t.Fatal(err)
		}
		r.flip(r.file(0o755, fmt.Sprintf("#!/bin/sh\necho paused at exec pid=$$\nread x <%s\nexec %s \"$@\"\n", fifo, r.good)))
		s.Signal(old, syscall.SIGUSR2)
		new := atoi(t, s.WaitLine(`^paused at \S+ pid=(\d+)`)[1])
		r.flip(r.good)
		refused := s.startConnecting()
		s.Signal(old, syscall.SIGKILL)
		s.WaitExit(old)
		waiting := s.ask()
		f, err := os.OpenFile(fifo, os.O_RDWR, 0) // does not wait for a reader
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		fmt.Fprintln(f, "go on")
		if pid := waiting(); pid != new {
			t.Errorf("process %d has answered, want %d", pid, new)
		}
		s.mustCarryOn(new, refused)
	})
	t.Run("after the ready line", func(t *testing.T) {
		s := startServer(t)
		old := s.Pid()
		s.misbehave("pause@check")
		s.Signal(old, syscall.SIGUSR2)
		new := atoi(t, s.WaitLine(`^paused at \S+ pid=(\d+)`)[1])
		refused := s.startConnecting()
		s.Halt(old) // it sees no line
		pipes := s.pipes(new)
		s.Signal(new, syscall.SIGUSR1)
		proctest.WaitFor(t, proctest.Limit, "the ready line", func() bool { return s.pipes(new) == pipes-1 })
		if pid := s.filePid(); pid != old {
			t.Errorf("the PID file names %d before the old process has said go; want %d", pid, old)
		}
		s.Signal(old, syscall.SIGKILL)
		s.mustCarryOn(new, refused)
	})
	t.Run("in probation", func(t *testing.T) {
		s := startServer(t, "-probation", "10m")
		old := s.Pid()
		h := s.hold()
		s.Signal(old, syscall.SIGUSR2)
		s.WaitLine(`standing by"`)
		refused := s.startConnecting()
		new := s.successor(old)
		s.Signal(old, syscall.SIGKILL)
		s.mustCarryOn(new, refused)
		h.cutOff()
	})
	t.Run("in drain", func(t *testing.T) {
		s := startServer(t, "-probation", "0", "-drain", "10m")
		old := s.Pid()
		h := s.hold()
		s.Signal(old, syscall.SIGUSR2)
		s.WaitLine(`upgrade done; draining"`)
		refused := s.startConnecting()
		new := s.successor(old)
		s.Signal(old, syscall.SIGKILL)
		s.mustCarryOn(new, refused)
		h.cutOff()
	})
}

// mustCarryOn: the old process is dead, the new one serves, and can be upgraded in
// turn.
func (s *server) mustCarryOn(new int, refused *connector) {
	s.t.Helper()
	if ws := s.WaitExit(s.Pid()); ws.Signal() != syscall.SIGKILL {
		s.t.Errorf("the old process has ended by %v, want SIGKILL", ws)
	}
	if pid := s.servingPid(); pid != new {
		s.t.Errorf("process %d answers, want %d", pid, new)
	}
	refused.mustBeNone()
	if pid := s.WaitAlone(); pid != new || s.filePid() != new {
		s.t.Errorf("process %d is left and the PID file names %d, want %d", pid, s.filePid(), new)
	}
	s.WaitLine(fmt.Sprintf(`the old process is gone" from=%d `, new))
	s.Signal(new, syscall.SIGUSR2)
	s.WaitLine(fmt.Sprintf(`standing by" from=%d `, new))
	s.successor(new)
	if gen := s.mustGet("/gen"); gen != "3" {
		s.t.Errorf("generation %s answers, want 3", gen)
	}
	s.Kill()
}

// ask sends a request at once, and gives a function that waits for the answer.
func (s *server) ask() (pid func() int) {
	s.t.Helper()
	c, err := net.DialTimeout("tcp", s.addr, proctest.Limit)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(proctest.Limit))
	fmt.Fprint(c, "GET /pid HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
	return func() int {
		s.t.Helper()
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			s.t.Fatalf("the answer to a request that waited in the queue: %v", err)
		}
		var pid int
		fmt.Fscan(resp.Body, &pid)
		return pid
	}
}

func (s *server) waitState(pid int, state byte) {
	s.t.Helper()
	proctest.WaitFor(s.t, proctest.Limit, fmt.Sprintf("state %c", state), func() bool {
		st, ok := proctest.ReadStat(pid)
		return ok && st.State == state
	})
}

// pipes counts the pipes that a process holds.
func (s *server) pipes(pid int) int {
	s.t.Helper()
	fds, err := proctest.FDs(pid)
	if err != nil {
		s.t.Fatal(err)
	}
	n := 0
	for _, target := range fds {
		if strings.HasPrefix(target, "pipe:") {
			n++
		}
	}
	return n
}

func touch(t testing.TB, path string) {
	t.Helper()
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
}

func remove(t testing.TB, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}
