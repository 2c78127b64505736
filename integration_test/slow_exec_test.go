//go:build linux

package integration_test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/proctest"
	"golang.org/x/sys/unix"
)

// A binary on a disk that hangs: strace holds up each execve of what the process
// starts, until it is told to go.

// holdExec holds up the execve of the process's children until release.
func (s *server) holdExec(pid int) (release func()) {
	s.t.Helper()
	cmd := exec.Command(lookPath(s.t, "strace"), "-f", "-e", "trace=execve", "-e", "inject=execve:delay_enter=900000000", "-p", strconv.Itoa(pid))
	stderr, err := cmd.StderrPipe()
	must(s.t, err)
	must(s.t, cmd.Start())
	said := make(chan string, 1)
	go func() {
		r := bufio.NewReader(stderr)
		line, _ := r.ReadString('\n')
		said <- line
		for err := error(nil); err == nil; {
			_, err = r.ReadString('\n')
		}
	}()
	var once bool
	release = func() {
		if !once {
			once = true
			cmd.Process.Signal(syscall.SIGINT)
			cmd.Wait()
		}
	}
	s.t.Cleanup(release)
	select {
	case line := <-said:
		if !strings.Contains(line, "attached") && inCI() {
			s.t.Fatalf("strace can't attach here: %s", line)
		}
		if !strings.Contains(line, "attached") {
			s.t.Skipf("strace can't attach here: %s", line)
		}
	case <-time.After(proctest.Limit):
		s.t.Fatalf("strace has not attached after %v", proctest.Limit)
	}
	return release
}

// hanging waits for the child that holdExec holds: in execve(2), so that it is not
// taken for one that package os clones and waits for at the first start of a process,
// to see whether pidfds work.
func (s *server) hanging(pid int) (child int) {
	s.t.Helper()
	proctest.WaitFor(s.t, proctest.Limit, "a child that has not executed its program", func() bool {
		c := proctest.Children(pid)
		if len(c) == 1 && c[0].Forked && inExecve(c[0].Pid) {
			child = c[0].Pid
		}
		return child != 0
	})
	return child
}

// inExecve reports whether the process is in that system call, see proc_pid_syscall(5).
func inExecve(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/syscall", pid))
	return err == nil && strings.HasPrefix(string(b), fmt.Sprint(unix.SYS_EXECVE, " "))
}

// Requests are served and garbage is collected while execve hangs, and the
// upgrade goes on when it does.
func TestSlowExecStopsNothing(t *testing.T) {
	s := startServer(t, "-probation", "0")
	release := s.holdExec(s.Pid())
	result := s.beginUpgrade()
	child := s.hanging(s.Pid())
	for range 5 {
		if got := s.mustGet("/gc"); got != strconv.Itoa(s.Pid()) {
			t.Fatalf("process %s answers, want %d", got, s.Pid())
		}
	}
	if got := s.hanging(s.Pid()); got != child {
		t.Errorf("the child is %d, was %d", got, child)
	}
	release()
	if r := s.waitResult(result); r.Err != "" {
		t.Errorf("Upgrade: %s", r.Err)
	}
	if got := s.WaitAlone(); got != child {
		t.Errorf("process %d is left, want %d", got, child)
	}
}

// The ready timeout counts from the request for the start.
func TestSlowExecIsLate(t *testing.T) {
	s := startServer(t, "-probation", "0", "-ready", "8s") // as long as a start may take where the machine is busy
	release := s.holdExec(s.Pid())
	r := s.upgrade()
	if !slices.Equal(r.Is, []string{"ErrReadyTimeout"}) || r.Pid == 0 || !strings.Contains(r.Err, "has waited too long to be executed") {
		t.Errorf("got %+v", r)
	}
	release() // strace holds even what was killed
	proctest.WaitFor(t, proctest.Limit, "the end of what hung", func() bool { return len(proctest.Children(s.Pid())) == 0 })
	if s.Count(`generation=2`) != 0 {
		t.Error("what was too late has run")
	}
	s.mustUpgrade()
}

// TERM ends a process that waits for execve, and what hangs.
func TestTermDuringSlowExec(t *testing.T) {
	s := startServer(t, "-probation", "0")
	release := s.holdExec(s.Pid())
	s.Signal(s.Pid(), syscall.SIGUSR2)
	s.hanging(s.Pid())
	s.Signal(s.Pid(), syscall.SIGTERM)
	s.WaitGone(s.Pid())
	release() // strace holds even what was killed
	s.WaitAllGone()
	if s.Count(`listening`) != 1 {
		t.Error("what was killed has run")
	}
}
