//go:build linux

package integration_test

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/julofinance/grace/v3/internal/proctest"
	"golang.org/x/sys/unix"
)

// many opens n connections, each with one answer behind it, in no goroutine.
func (m *mover) many(n int) []*client {
	m.t.Helper()
	return m.manyBy(m.dialFrom, n)
}

func (m *mover) manyBy(dial func(ip string) *client, n int) []*client {
	m.t.Helper()
	clients := make([]*client, n)
	var next atomic.Int64
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= n || m.t.Failed() {
					return
				}
				// One source address has not the ports for all.
				d := dial(fmt.Sprintf("127.0.1.%d", 1+i%8))
				if a, err := d.ask("/"); err != nil || a.pid != m.Pid() {
					m.t.Errorf("a new connection: answered by %d, %v", a.pid, err)
				}
				clients[i] = d
			}
		})
	}
	wg.Wait()
	if m.t.Failed() {
		m.t.FailNow()
	}
	return clients
}

// answers asks on all connections, and counts the answers by process; connections
// without an answer are under 0.
func answers(clients []*client) map[int]int {
	got := map[int]int{}
	for _, c := range clients {
		a, err := c.ask("/")
		if err != nil {
			a.pid = 0
			if got[0] == 0 {
				c.t.Logf("the first without an answer: %v", err)
			}
		}
		got[a.pid]++
	}
	return got
}

// askAgain asks on those connections that were answered before the drain had come to
// them, or before it was known that they can't move: a client whose connection stays with
// the draining process is told so only by an answer that says that it is the last.
func (m *mover) askAgain(clients []*client) {
	m.t.Helper()
	for _, c := range clients {
		proctest.WaitFor(m.t, proctest.Limit, "the last answer of the old process", func() bool {
			if c.last.closes || c.last.pid != m.Pid() {
				return true
			}
			if _, err := c.ask("/"); err != nil {
				m.t.Errorf("asked again: %v", err)
				return true
			}
			return false
		})
	}
}

func openFilesLimit(t testing.TB) int {
	t.Helper()
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		t.Fatal(err)
	}
	want := l
	want.Cur, want.Max = 25000, max(25000, l.Max)
	if unix.Prlimit(0, unix.RLIMIT_NOFILE, &want, nil) == nil {
		return 25000
	}
	want.Cur, want.Max = l.Max, l.Max
	unix.Prlimit(0, unix.RLIMIT_NOFILE, &want, nil)
	return int(min(l.Max, 25000))
}

// 20,000 connections move with 50 descriptors to spare, in the old process and in the
// new one, while the old one serves others.
func TestMove20000(t *testing.T) {
	n := min(20000, openFilesLimit(t)-300)
	if n < 20000 {
		t.Logf("RLIMIT_NOFILE can't be raised here: %d connections", n)
	}
	// With the race detector, on processors that others use as well, it takes a minute.
	m := startMover(t, "-probation", "200ms", "-drain", "10m")
	idle := m.many(n)
	m.dial().ask("/limit?spare=50")
	// Busy ones: a request that begins before the drain and ends behind it, and
	// some that never pause.
	held := make([]*client, 20)
	for i := range held {
		held[i] = m.dial()
		held[i].mustAsk(t, m.Pid()) // it is the old process's for sure
		fmt.Fprint(held[i], "POST /hold HTTP/1.1\r\nHost: grace\r\nContent-Length: 2\r\n\r\na")
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var asked atomic.Int64
	for range 4 {
		c := m.dial()
		wg.Go(func() {
			for {
				if _, err := c.ask("/"); err != nil {
					t.Errorf("a busy connection: %v", err)
					return
				}
				asked.Add(1)
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	pid := m.upgrade()
	m.WaitLine(`msg="grace: upgrade done`)
	// All that is idle moves while the others are held.
	proctest.WaitFor(t, 10*proctest.Limit, "all idle connections to be in the new process", func() bool {
		fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		return err == nil && len(fds) > n
	})
	for _, c := range held {
		fmt.Fprint(c, "b")
		if a, err := c.read(); err != nil || a.pid != m.Pid() || a.closes {
			t.Errorf("a held request: got an answer of %d, closes %v, %v; want one of %d", a.pid, a.closes, err, m.Pid())
		}
	}
	moved, finished, cut := m.drained()
	close(stop)
	wg.Wait()
	if want := n + len(held) + 4 + 1; moved != want || finished != 0 || cut != 0 {
		t.Errorf("moved %d, finished %d, cut off %d; want all %d moved", moved, finished, cut, want)
	}
	for _, clients := range [][]*client{idle, held} {
		if got := answers(clients); got[pid] != len(clients) {
			t.Errorf("answers by pid, 0 for none: %v; want %d by %d", got, len(clients), pid)
		}
	}
	t.Logf("%s; %d requests meanwhile", tookLine(m), asked.Load())
}

func tookLine(m *mover) string {
	for _, l := range m.Lines() {
		if strings.Contains(l, `"grace: drained"`) {
			return l[strings.Index(l, "took="):]
		}
	}
	return ""
}

// The new process has room for some only: the rest stay with the old one.
func TestMoveIntoFullTable(t *testing.T) {
	m := startMover(t, "-nofile2", "100", "-idlegrace", "1m")
	clients := m.many(500)
	pid := m.upgrade()
	m.WaitLine(`msg="grace: upgrade done`)
	got := answers(clients)
	if got[0] > 0 || got[pid]+got[m.Pid()] != len(clients) {
		t.Errorf("answers by pid, 0 for none: %v; want all by %d and %d", got, pid, m.Pid())
	}
	m.askAgain(clients)
	// One that was asked before it moved was answered by the old process.
	moved, finished, cut := m.drained()
	if moved < 50 || moved > 110 || moved < got[pid] || moved+finished != len(clients) || cut != 0 {
		t.Errorf("moved %d, finished %d and cut off %d; want some 100 moved, and the others finished", moved, finished, cut)
	}
}

// holdAll lets all clients have half a request sent, which the old process has begun to
// serve.
func (m *mover) holdAll(clients []*client) {
	m.t.Helper()
	for _, c := range clients {
		fmt.Fprint(c, "POST /hold HTTP/1.1\r\nHost: grace\r\nContent-Length: 2\r\n\r\na")
	}
}

// releaseAll sends the rest; all must be answered by the process pid.
func (m *mover) releaseAll(clients []*client, pid int) {
	m.t.Helper()
	for _, c := range clients {
		fmt.Fprint(c, "b")
	}
	for _, c := range clients {
		if a, err := c.read(); err != nil || a.pid != pid {
			m.t.Fatalf("a held request: got an answer of %d, %v; want one of %d", a.pid, err, pid)
		}
	}
}

// The new process stops in the drain. What is on its way comes back, the old process
// serves it, and does not exit, which would leave no process that serves: it kills the
// new one and serves on.
func TestMoveToStoppedProcess(t *testing.T) {
	t.Parallel()
	m := startMover(t, "-idlegrace", "1m")
	clients := m.many(1000)
	m.holdAll(clients)
	pid := m.upgrade()
	m.WaitLine(`msg="grace: upgrade done`)
	m.Halt(pid)
	m.releaseAll(clients, m.Pid())
	if got := answers(clients); got[m.Pid()] != len(clients) {
		t.Errorf("answers by pid, 0 for none: %v; want all by %d", got, m.Pid())
	}
	m.WaitLine(`connections can't be moved to the new process any more.* err="it has not taken them within`)
	m.WaitLine(`rolled back; this process accepts again.*it did not answer for 10s`)
	m.WaitGone(pid)
	m.dial().mustAsk(t, m.Pid())
	if m.Count(`grace: stopped`) > 0 {
		t.Error("the old process has exited and left no process that serves")
	}
}

// The new process is killed when it has some of the connections: those are lost with
// it, and the old process, which serves again, has all the others.
func TestNewIsKilledWhileConnectionsMove(t *testing.T) {
	m := startMover(t, "-in2", "log")
	clients := m.many(5000)
	pid := m.upgrade()
	m.WaitLine(fmt.Sprintf(`^state new .* pid=%d$`, pid))
	m.Halt(pid)
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	m.Signal(pid, syscall.SIGKILL)
	m.WaitLine(`rolled back`)
	got := answers(clients)
	// What the new process had received is lost with it, begun there or not; no more.
	if got[m.Pid()]+got[0] != len(clients) || got[m.Pid()] == 0 || got[0] > len(fds) {
		t.Errorf("answers by pid, 0 for none: %v; the new process had %d descriptors, want all that it had not received by %d", got, len(fds), m.Pid())
	}
	if got := answers(m.many(10)); got[m.Pid()] != 10 {
		t.Errorf("new connections: answers by pid %v, want all by %d", got, m.Pid())
	}
	t.Logf("%d of %d connections were lost with the new process", got[0], len(clients))
}

// The new process is killed before it has read any: nothing is lost.
func TestNewIsKilledBeforeItTakesConnections(t *testing.T) {
	m := startMover(t)
	clients := m.many(1000)
	m.holdAll(clients)
	pid := m.upgrade()
	m.WaitLine(`msg="grace: upgrade done`)
	m.Halt(pid)
	m.releaseAll(clients, m.Pid())
	m.Signal(pid, syscall.SIGKILL)
	m.WaitLine(`rolled back`)
	for range 2 {
		if got := answers(clients); got[m.Pid()] != len(clients) {
			t.Errorf("answers by pid, 0 for none: %v; want all by %d", got, m.Pid())
		}
	}
	next := m.upgrade()
	m.drained()
	if got := answers(clients); got[next] != len(clients) {
		t.Errorf("after the next upgrade: answers by pid, 0 for none: %v; want all by %d", got, next)
	}
}
