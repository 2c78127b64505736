//go:build linux

package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/julofinance/grace/v3"
	"github.com/julofinance/grace/v3/internal/proctest"
)

func TestMain(m *testing.M) { proctest.Main(m) }

type server struct {
	*proctest.Process
	t    *testing.T
	addr string
	pid  int // of the newest generation
}

func start(t *testing.T, args ...string) *server {
	t.Helper()
	s := &server{t: t}
	s.Process = proctest.Start(t, proctest.Command{Path: proctest.Build(t, "."), Args: append([]string{"-addr", "127.0.0.1:0"}, args...)})
	s.pid = s.Pid()
	s.addr = s.WaitLine(`^listening (\S+)`)[1]
	s.WaitLine(`grace: serving`)
	return s
}

// upgrade sends the signal and waits until the new process is ready.
func (s *server) upgrade() (old int) {
	s.t.Helper()
	old = s.pid
	s.Signal(old, syscall.SIGUSR2)
	var pid int
	fmt.Sscan(s.WaitLine(`grace: serving pid=(\d+)`)[1], &pid)
	s.pid = pid
	return old
}

// A client has one connection, and never another.
type client struct {
	net.Conn
	r *bufio.Reader
}

func dial(t *testing.T, s *server) *client {
	t.Helper()
	c, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(2 * proctest.Limit))
	return &client{c, bufio.NewReader(c)}
}

// answer reads one answer, which must be to this line.
func (c *client) answer(line string) (pid int, err error) {
	got, err := c.r.ReadString('\n')
	if err != nil {
		return 0, fmt.Errorf("waiting for the answer to %.20q: %w", line, err)
	}
	head, tail, _ := strings.Cut(strings.TrimSuffix(got, "\n"), " ")
	if _, err := fmt.Sscan(head, &pid); err != nil || tail != line {
		return 0, fmt.Errorf("got the answer %.60q to the line %.60q", got, line)
	}
	return pid, nil
}

// talk writes lines, whole ones and in pieces, one by one and several at once,
// until stop says so, and checks every answer.
func (c *client) talk(id int, pid *atomic.Int64, stop <-chan struct{}) error {
	for n := 0; ; n++ {
		select {
		case <-stop:
			return nil
		default:
		}
		var lines []string
		for i := range 1 + n%3 {
			lines = append(lines, fmt.Sprintf("line %d.%d of client %d %s", n, i, id, strings.Repeat("x", n*37%3000)))
		}
		all := strings.Join(lines, "\n") + "\n"
		for size := max(1, len(all)/(1+n%4)); len(all) > 0; {
			piece := all[:min(size, len(all))]
			all = all[len(piece):]
			if _, err := io.WriteString(c, piece); err != nil {
				return fmt.Errorf("client %d, line %d: %w", id, n, err)
			}
		}
		for _, line := range lines {
			got, err := c.answer(line)
			if err != nil {
				return fmt.Errorf("client %d, line %d: %w", id, n, err)
			}
			pid.Store(int64(got))
		}
	}
}

// talkers run talk on several connections. The function that it returns ends
// them, and waits; the other waits until all are served by one process.
func talkers(t *testing.T, s *server, n int) (wait func(pid int), end func()) {
	stop := make(chan struct{})
	pids := make([]atomic.Int64, n)
	errs := make([]error, n)
	var failed atomic.Bool
	var wg sync.WaitGroup
	for i := range n {
		c := dial(t, s)
		wg.Go(func() {
			if errs[i] = c.talk(i, &pids[i], stop); errs[i] != nil {
				failed.Store(true)
			}
		})
	}
	stopped := sync.OnceFunc(func() { close(stop); wg.Wait() })
	t.Cleanup(stopped)
	return func(pid int) {
			t.Helper()
			proctest.WaitFor(t, proctest.Limit, fmt.Sprintf("answers of process %d on all connections", pid), func() bool {
				for i := range pids {
					if pids[i].Load() != int64(pid) {
						return failed.Load()
					}
				}
				return true
			})
		}, func() {
			t.Helper()
			stopped()
			if err := errors.Join(errs...); err != nil {
				t.Error(err)
			}
		}
}

func TestClientsStayConnected(t *testing.T) {
	s := start(t, "-probation", "50ms")
	wait, end := talkers(t, s, 6)
	idle := dial(t, s)
	half := dial(t, s)
	for n := range 4 {
		// A line of which only the begin has come.
		line := fmt.Sprintf("half a line, and the other half %d", n)
		if _, err := io.WriteString(half, line[:11]); err != nil {
			t.Fatal(err)
		}
		wait(s.pid)
		s.WaitGone(s.upgrade())
		wait(s.pid)
		for c, rest := range map[*client]string{idle: line + "\n", half: line[11:] + "\n"} {
			if _, err := io.WriteString(c, rest); err != nil {
				t.Fatal(err)
			}
			if pid, err := c.answer(line); err != nil || pid != s.pid {
				t.Fatalf("after upgrade %d: answer of process %d, %v; want one of %d", n+1, pid, err, s.pid)
			}
		}
		if m := s.WaitLine(`grace: drained.* moved=(\d+) finished=(\d+) waited=0 cut=0`); m[1] != "8" || m[2] != "0" {
			t.Errorf("upgrade %d: %s; want 8 moved, 0 finished", n+1, m[0])
		}
	}
	end()
}

// A client that does not read its answers keeps the old process until it does.
func TestSlowClient(t *testing.T) {
	s := start(t, "-probation", "50ms")
	c := dial(t, s)
	line := strings.Repeat("y", 20000)
	const lines = 1000 // 20 MB: more than the sockets' buffers hold
	written := make(chan error, 1)
	go func() {
		_, err := io.WriteString(c, strings.Repeat(line+"\n", lines))
		written <- err
	}()
	first := s.pid
	if pid, err := c.answer(line); err != nil || pid != first {
		t.Fatalf("answer of process %d, %v; want one of %d", pid, err, first)
	}
	s.upgrade()
	s.WaitLine(`grace: upgrade done; draining`)
	seen := map[int]int{first: 1}
	last := first
	for range lines - 1 {
		pid, err := c.answer(line)
		if err != nil {
			t.Fatal(err)
		}
		if last == s.pid && pid == first {
			t.Fatal("the old process answers after the new one")
		}
		seen[pid]++
		last = pid
	}
	if err := <-written; err != nil {
		t.Fatal(err)
	}
	if seen[first] == 0 || seen[s.pid] == 0 || len(seen) != 2 {
		t.Errorf("answers by process: %v; want some of %d, then some of %d", seen, first, s.pid)
	}
	s.WaitGone(first)
}

// The new version dies after it was ready: everything goes on.
func TestRollBack(t *testing.T) {
	s := start(t, "-probation", "1m")
	wait, end := talkers(t, s, 4)
	old := s.pid
	wait(old)
	s.upgrade()
	s.Signal(s.pid, syscall.SIGKILL)
	s.WaitLine(`grace: rolled back`)
	c := dial(t, s)
	if _, err := io.WriteString(c, "hello\n"); err != nil {
		t.Fatal(err)
	}
	if pid, err := c.answer("hello"); err != nil || pid != old {
		t.Errorf("answer of process %d, %v; want one of %d", pid, err, old)
	}
	wait(old)
	end()
	if got := s.WaitAlone(); got != old {
		t.Errorf("process %d is left; want %d", got, old)
	}
}

// At the last stop idle clients are disconnected at once: no process takes over their
// connections.
func TestStop(t *testing.T) {
	s := start(t)
	c := dial(t, s)
	if _, err := io.WriteString(c, "hello\nhel"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.answer("hello"); err != nil {
		t.Fatal(err)
	}
	s.Signal(s.pid, syscall.SIGTERM)
	if b, err := io.ReadAll(c.r); err != nil || len(b) > 0 {
		t.Errorf("got %q, %v after the stop; want the end", b, err)
	}
	s.WaitLine(`grace: drained.* cut=0`)
	s.WaitAllGone()
}

// scripted is a connection of which each Read gives the next of its reads; an
// empty one is ErrMove. It is none that Move knows.
type scripted struct {
	net.Conn
	reads   []string
	written bytes.Buffer
	closed  bool
}

func (c *scripted) Read(b []byte) (int, error) {
	if len(c.reads) == 0 {
		return 0, io.EOF
	}
	next := c.reads[0]
	c.reads = c.reads[1:]
	if next == "" {
		return 0, grace.ErrMove
	}
	return copy(b, next), nil
}

func (c *scripted) Write(b []byte) (int, error)      { return c.written.Write(b) }
func (c *scripted) Close() error                     { c.closed = true; return nil }
func (c *scripted) SetReadDeadline(time.Time) error  { return nil }
func (c *scripted) SetWriteDeadline(time.Time) error { return nil }

// Where Move fails, the connection is served on, and nothing of it is lost.
func TestMoveFails(t *testing.T) {
	c := &scripted{reads: []string{"", "one\ntw", "", "o", "", "\nthree\n", ""}}
	handle(c)
	var got []string
	for line := range strings.Lines(c.written.String()) {
		_, line, _ = strings.Cut(strings.TrimSpace(line), " ")
		got = append(got, line)
	}
	if want := "one two three"; strings.Join(got, " ") != want || !c.closed {
		t.Errorf("answered %q, closed %v; want %q, true", got, c.closed, want)
	}
}

func TestLineTooLong(t *testing.T) {
	s := start(t)
	c := dial(t, s)
	long := strings.Repeat("z", maxLine-1)
	if _, err := io.WriteString(c, long+"\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.answer(long); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, long+"z"); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(c.r); len(b) > 0 {
		t.Errorf("got %.20q, %v; want the end", b, err)
	}
}
