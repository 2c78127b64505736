//go:build linux

package integration_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/proctest"
)

// The last stop ends the sockets themselves, also if other processes have copies of
// their descriptors and do not serve on them.

// mustBeFree fails the test if a client of the service, which has ended, is not
// refused, and if the service can't be started again.
func (s *server) mustBeFree() {
	s.t.Helper()
	c, err := net.DialTimeout("tcp", s.addr, proctest.Limit)
	if err == nil {
		c.Close()
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		s.t.Errorf("a client of the service that has ended got %v, want that it is refused", err)
	}
	p := proctest.Start(s.t, proctest.Command{Path: proctest.Build(s.t, serverPackage), Args: []string{"-http", "tcp=" + s.addr, "-pidfile", s.pidFile}})
	p.WaitLine(`msg="grace: serving"`)
	if got := s.servingPid(); got != p.Pid() {
		s.t.Errorf("process %d answers, want %d", got, p.Pid())
	}
}

// askUntilRefused asks again and again, each time over a new connection, until one
// is refused. Each one that was made is answered; but for the one that may come
// between the last look into the queue and its end, of which there is one.
func (s *server) askUntilRefused() {
	s.t.Helper()
	lost := 0
	for end := time.Now().Add(proctest.Limit); ; {
		_, err := s.get("/pid")
		switch {
		case err == nil:
		case errors.Is(err, syscall.ECONNREFUSED):
			return
		case errors.Is(err, os.ErrDeadlineExceeded) || lost > 0:
			s.t.Fatalf("a connection that was made during the stop got %v", err)
		default:
			lost++
		}
		if time.Now().After(end) {
			s.t.Fatalf("no connection was refused within %v", proctest.Limit)
		}
	}
}

// A child of the program has every descriptor until its execve is through.
func TestLastStopWhileAChildWaitsForExec(t *testing.T) {
	s := startServer(t, "-drain", "10ms") // the request that starts it is cut off
	release := s.holdExec(s.Pid())
	go s.get("/run?arg=/bin/true")
	s.hanging(s.Pid())
	s.Signal(s.Pid(), syscall.SIGTERM)
	s.WaitGone(s.Pid())
	s.mustBeFree()
	if len(s.All()) == 0 {
		t.Error("the child has ended: this shows nothing")
	}
	release()
	s.WaitAllGone()
}

// What a script leaves behind that starts the new process by exec has the
// descriptors of the hand-over: the sockets, and the lock of the PID file, which
// stays where the PID file names another program.
func TestLastStopWithWhatAScriptHasLeft(t *testing.T) {
	for name, pidFile := range map[string]string{"in order": "", "the PID file names another process": "1\n"} {
		t.Run(name, func(t *testing.T) {
			script := filepath.Join(t.TempDir(), "script")
			writeFile(t, script, fmt.Sprintf("#!/bin/sh\nsleep 1000 >/dev/null 2>&1 &\necho \"helper $!\"\nexec %s \"$@\"\n", proctest.Build(t, serverPackage)), 0o755)
			s := startServer(t, "-probation", "0", "-exec", script)
			first := s.Pid()
			s.Signal(first, syscall.SIGUSR2)
			helper := atoi(t, s.WaitLine(`^helper (\d+)`)[1])
			s.WaitGone(first)
			s.WaitLine("the old process is gone")
			if fds, err := proctest.FDs(helper); err != nil || !strings.Contains(fmt.Sprint(fds), "socket:") || !strings.Contains(fmt.Sprint(fds), ".lock") {
				t.Fatalf("the helper has %v, error %v: this shows nothing", fds, err)
			}
			second := s.filePid()
			if pidFile != "" {
				must(t, os.Rename(writeFile(t, s.pidFile+".new", pidFile, 0o644), s.pidFile))
			}
			s.Signal(second, syscall.SIGTERM)
			s.WaitGone(second)
			s.mustBeFree()
			s.Signal(helper, syscall.SIGKILL)
			s.WaitAllGone()
		})
	}
}

// A stop while a new process starts loses no connection, as one at any other time:
// the new one has the sockets until it is gone, and strace holds up its end.
func TestLastStopWhileANewProcessStarts(t *testing.T) {
	s := startServer(t, "-probation", "0")
	h := s.hold() // the stop takes its time
	release := s.holdExec(s.Pid())
	s.Signal(s.Pid(), syscall.SIGUSR2)
	s.hanging(s.Pid())
	s.client.Timeout = proctest.Limit / 4
	s.Signal(s.Pid(), syscall.SIGTERM)
	s.askUntilRefused()
	if !s.Has(s.Pid()) {
		t.Error("the process is gone, whatever it had: this shows nothing")
	}
	h.release()
	s.WaitGone(s.Pid())
	s.mustBeFree()
	if len(s.All()) == 0 {
		t.Error("the new process is gone: this shows nothing")
	}
	release()
	s.WaitAllGone()
}

// The old process stands by, with its copies, and does not hear yet that the
// service ends.
func TestLastStopWhileOldIsStopped(t *testing.T) {
	s := startServer(t, "-probation", "10m")
	old := s.Pid()
	s.Signal(old, syscall.SIGUSR2)
	s.WaitLine(`standing by"`)
	new := s.filePid()
	s.Halt(old)
	s.client.Timeout = proctest.Limit / 4
	s.Signal(new, syscall.SIGTERM)
	s.askUntilRefused()
	s.waitState(new, 'Z') // the old process is to wait for it
	s.mustBeFree()
	s.Signal(old, syscall.SIGCONT)
	s.WaitAllGone()
	for _, line := range []string{"rolled back", "opened again"} {
		if s.Count(line) != 0 {
			t.Errorf("the service has ended, and the old process says %q", line)
		}
	}
}

// A new process that gives up leaves the sockets to the old one as they are.
func TestSocketsOfANewProcessThatGivesUp(t *testing.T) {
	s := startServer(t, "-probation", "10m")
	s.misbehave("close-after-ready=0s")
	l := s.startLoad(4)
	result := s.beginUpgrade()
	if r := s.waitResult(result); len(r.Is) != 1 || r.Is[0] != "ErrRolledBack" {
		t.Errorf("Upgrade returned %+v; want ErrRolledBack", r)
	}
	s.WaitAlone()
	l.mustLoseNothing(t)
	if s.Count("opened again") != 0 {
		t.Error("the new process has ended what the old one serves on")
	}
}
