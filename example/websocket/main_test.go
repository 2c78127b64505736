//go:build linux

package main

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/julofinance/grace/v3/internal/proctest"
	"github.com/julofinance/grace/v3/internal/testing/lingertest"
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

// upgrade sends the signal and waits until the new process alone accepts.
func (s *server) upgrade() (old int) {
	s.t.Helper()
	old = s.pid
	s.Signal(old, syscall.SIGUSR2)
	fmt.Sscan(s.WaitLine(`grace: serving pid=(\d+)`)[1], &s.pid)
	s.WaitLine(`grace: the new process is ready; standing by`)
	return old
}

func (s *server) dial() *websocket.Conn {
	s.t.Helper()
	c, _, err := websocket.DefaultDialer.Dial("ws://"+s.addr, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	c.NetConn().SetDeadline(time.Now().Add(2 * proctest.Limit))
	return c
}

// mustEcho sends n messages, each of which this process must answer.
func (s *server) mustEcho(c *websocket.Conn, pid, n int) {
	s.t.Helper()
	c.NetConn().SetDeadline(time.Now().Add(2 * proctest.Limit))
	for i := range n {
		want := fmt.Sprintf("%d message %d", pid, i)
		_, msg, _ := strings.Cut(want, " ")
		if err := c.WriteMessage(websocket.TextMessage, []byte(msg)); err != nil {
			s.t.Fatal(err)
		}
		if _, got, err := c.ReadMessage(); err != nil || string(got) != want {
			s.t.Fatalf("got %q, %v; want %q", got, err, want)
		}
	}
}

// mustEchoNew connects to the newest process, and leaves. The Accept that the old
// one was in when it stopped accepting may still take a connection, on a machine
// that is busy enough; it takes one at the most.
func (s *server) mustEchoNew() {
	s.t.Helper()
	c := s.dial()
	if pid := s.echoingPid(c); pid != s.pid {
		c.Close()
		c = s.dial()
	}
	s.mustEcho(c, s.pid, 10)
	c.Close()
}

func (s *server) echoingPid(c *websocket.Conn) (pid int) {
	s.t.Helper()
	if err := c.WriteMessage(websocket.TextMessage, []byte("who")); err != nil {
		s.t.Fatal(err)
	}
	_, got, err := c.ReadMessage()
	if err != nil {
		s.t.Fatal(err)
	}
	fmt.Sscan(string(got), &pid)
	return pid
}

func TestClientsStay(t *testing.T) {
	s := start(t, "-stay")
	for range 3 {
		a, b := s.dial(), s.dial()
		s.mustEcho(a, s.pid, 10)
		old := s.upgrade()
		s.mustEchoNew()
		s.WaitLine(`grace: upgrade done; draining`)
		s.mustEcho(a, old, 100)
		s.mustEcho(b, old, 100)
		s.mustEchoNew()
		a.Close()
		s.mustEcho(b, old, 100)
		if !s.Has(old) {
			t.Fatal("the old process has ended before its last client")
		}
		b.Close()
		s.WaitGone(old)
		s.WaitLine(`grace: drained.* cut=0`)
	}
}

// A client is served by its process over five upgrades, each of which begins as soon as it
// may. With -linger-long each is served for a minute: make linger.
func TestClientStaysLong(t *testing.T) {
	s := start(t, "-stay")
	var all []*websocket.Conn
	var pids []int
	echo := func() {
		t.Helper()
		for i, c := range all {
			s.mustEcho(c, pids[i], 10)
		}
	}
	run := lingertest.New(t, echo)
	open := func() {
		all, pids = append(all, s.dial()), append(pids, s.pid)
		echo()
		run.Opened(fmt.Sprintf("gorilla's WebSocket of process %d", s.pid))
	}
	open()
	for range lingertest.Upgrades {
		run.Upgrade()
		old := s.upgrade()
		s.WaitLine(`grace: upgrade done; draining`)
		done := time.Now()
		s.WaitLine(fmt.Sprintf(`grace: the old process lingers; this one may be upgraded.* old=%d`, old))
		run.Over(time.Since(done))
		open()
	}
	run.End()
	if n := s.Count(`grace: upgrade queued`); n > 0 {
		t.Errorf("%d upgrades have waited", n)
	}
	for i, c := range all[:lingertest.Upgrades] {
		c.Close()
		s.WaitGone(pids[i])
	}
	s.mustEcho(all[5], s.WaitAlone(), 10)
	if n := s.Count(`grace: drained.* cut=0`); n != 5 {
		t.Errorf("%d processes have ended without a cut, want 5", n)
	}
}

func TestGoodbye(t *testing.T) {
	s := start(t)
	c := s.dial()
	for range 3 {
		s.mustEcho(c, s.pid, 10)
		old := s.upgrade()
		s.mustEcho(c, old, 1) // probation: no client is sent away
		next := s.dial()
		s.mustEcho(next, s.pid, 1)
		_, _, err := c.ReadMessage()
		if !websocket.IsCloseError(err, websocket.CloseServiceRestart) {
			t.Fatalf("got %v; want close code %d", err, websocket.CloseServiceRestart)
		}
		s.WaitGone(old)
		s.WaitLine(`grace: drained.* cut=0`)
		c = next
	}
	s.Signal(s.pid, syscall.SIGTERM)
	if _, _, err := c.ReadMessage(); !websocket.IsCloseError(err, websocket.CloseServiceRestart) {
		t.Errorf("at the stop: %v; want close code %d", err, websocket.CloseServiceRestart)
	}
	s.WaitAllGone()
	if n := s.Count(`panic`); n > 0 { // leaving was closed twice
		t.Errorf("%d processes panicked", n)
	}
}
