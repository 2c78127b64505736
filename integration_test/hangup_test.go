//go:build linux

package integration_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/julofinance/grace/v3/internal/proctest"
	"golang.org/x/sys/unix"
)

// onTerminal starts the server as the leader of a session on a terminal of its
// own, which is script(1)'s. What later generations print is in a file, since
// it would go with the terminal.
func onTerminal(t *testing.T) (s *server, leader int, log func() string) {
	t.Helper()
	binary := proctest.Build(t, serverPackage)
	out := filepath.Join(t.TempDir(), "log")
	later := filepath.Join(t.TempDir(), "later")
	must(t, proctest.WriteProgram(later, fmt.Appendf(nil, "#!/bin/sh\nexec %s \"$@\" >>%s 2>&1\n", binary, out), 0o755))
	s = startServerAs(t, proctest.Command{Path: "/bin/sh", Args: []string{"-c", `exec "$0" -qec "exec $*" /dev/null`,
		lookPath(t, "script"), binary, ownArgs, "-probation", "0", "-exec", later}})
	leader = s.servingPid()
	s.Adopt(leader)
	if sid, err := unix.Getsid(leader); err != nil || sid != leader {
		t.Fatalf("process %d is in session %d, error %v; want it to lead one", leader, sid, err)
	}
	return s, leader, func() string { b, _ := os.ReadFile(out); return string(b) }
}

// The kernel sends SIGHUP to the foreground group when the leader of its session
// exits, which the old process does after an upgrade.
func TestLeaderOfASession(t *testing.T) {
	s, leader, log := onTerminal(t)
	s.Signal(leader, syscall.SIGUSR2)
	s.WaitGone(leader)
	s.WaitGone(s.Pid()) // script, and with it the terminal
	pid := s.WaitAlone()
	proctest.WaitFor(t, proctest.Limit, "a line about the terminal", func() bool {
		return strings.Contains(log(), "the terminal went away with the old process")
	})
	if got := s.servingPid(); got != pid {
		t.Errorf("process %d answers, want %d", got, pid)
	}
	s.mustUpgrade()
}

// The terminal is gone: drain and stop.
func TestTerminalIsGone(t *testing.T) {
	s, leader, _ := onTerminal(t)
	h := s.hold()
	s.Signal(s.Pid(), syscall.SIGKILL)
	proctest.WaitFor(t, proctest.Limit, "a listener that is closed", func() bool { _, err := s.get("/pid"); return err != nil })
	h.release()
	if ws := s.WaitExit(leader); !ws.Exited() || ws.ExitStatus() != 0 {
		t.Errorf("the server has ended with %v, status %d, signal %v; want 0", ws, ws.ExitStatus(), ws.Signal())
	}
}

// SIGHUP by kill(1) does nothing, unless the program wants something else.
func TestHangup(t *testing.T) {
	t.Run("does nothing", func(t *testing.T) {
		s := startServer(t, "-probation", "0")
		for range 2 {
			pid := s.filePid()
			s.Signal(pid, syscall.SIGHUP)
			if got := s.servingPid(); got != pid {
				t.Errorf("process %d answers, want %d", got, pid)
			}
			if got := s.mustUpgrade(); s.servingPid() != got {
				t.Errorf("the new process does not answer")
			}
		}
		if n := s.Count("grace: stopping"); n != 0 {
			t.Errorf("%d processes were stopped", n)
		}
	})
	t.Run("upgrades", func(t *testing.T) {
		s := startServer(t, "-probation", "0", "-hup")
		old := s.filePid()
		s.Signal(old, syscall.SIGHUP)
		s.WaitGone(old)
		if got := s.WaitAlone(); s.servingPid() != got {
			t.Errorf("the new process does not answer")
		}
	})
	t.Run("stays ignored", func(t *testing.T) {
		s := startServerAs(t, proctest.Command{Path: "/bin/sh", Args: []string{"-c", `trap "" HUP; exec "$@"`, "sh", proctest.Build(t, serverPackage), ownArgs, "-probation", "0"}})
		for range 2 {
			if pid := s.filePid(); signalsOf(t, pid, "SigIgn")&(1<<(syscall.SIGHUP-1)) == 0 {
				t.Errorf("process %d does not ignore SIGHUP", pid)
			}
			s.mustUpgrade()
		}
	})
}
