//go:build linux

package integration_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/julofinance/grace/v3/internal/proctest"
)

// fdLine is what "ls -l /proc/self/fd" says of a descriptor.
var fdLine = regexp.MustCompile(` (\d+) -> (.*)$`)

// mustBeClean checks what a child of the server has been given: its own standard
// streams, the directory that ls reads, and no variable of ours.
func mustBeClean(t testing.TB, when string, env, fds []string) {
	t.Helper()
	if len(env) < 2 || len(fds) < 3 {
		t.Fatalf("%s: env says %q, ls says %q", when, env, fds)
	}
	for _, l := range env {
		if strings.HasPrefix(l, "GRACE_") || strings.Contains(l, "LISTEN_") {
			t.Errorf("%s: a child has the variable %s", when, l)
		}
	}
	for _, l := range fds {
		m := fdLine.FindStringSubmatch(l)
		switch {
		case m == nil: // "total 0"
		case m[1] <= "2" && len(m[1]) == 1 && (m[2] == "/dev/null" || strings.HasPrefix(m[2], "pipe:")):
		case m[1] == "3" && strings.HasPrefix(m[2], "/proc/"):
		default:
			t.Errorf("%s: a child has the descriptor %s, %s", when, m[1], m[2])
		}
	}
}

func (s *server) childrenMustBeClean(when string) {
	s.t.Helper()
	mustBeClean(s.t, when,
		strings.Split(s.mustGet("/run?arg=env"), "\n"),
		strings.Split(s.mustGet("/run?arg=ls&arg=-l&arg=/proc/self/fd"), "\n"))
}

// probed gives what the child saw that a generation started before New.
func (s *server) probed(when string) {
	s.t.Helper()
	pid := s.WaitLine(`^probed pid=(\d+)`)[1]
	var env, fds []string
	for _, l := range s.Lines() {
		if rest, ok := strings.CutPrefix(l, "probe env "); ok {
			env = append(env, rest)
		}
		if rest, ok := strings.CutPrefix(l, "probe ls "); ok {
			fds = append(fds, rest)
		}
	}
	mustBeClean(s.t, when+", before New of "+pid, env, fds)
}

func TestGrandchildrenInheritNothing(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "f")
	if err := os.WriteFile(file, []byte(strings.Repeat("0123456789", 9)), 0o644); err != nil {
		t.Fatal(err)
	}
	s := startServer(t, "-probe", "-raw", "tcp=127.0.0.1:0", "-raw", "unix="+filepath.Join(dir, "u"),
		"-packet", "udp=127.0.0.1:0", "-file", file, "-probation", "0s")
	s.probed("first start")
	s.childrenMustBeClean("before the first upgrade")
	for generation := 2; generation <= 3; generation++ {
		s.misbehave("pause@check")
		result := s.beginUpgrade()
		paused := atoi(t, s.WaitLine(`^paused at check pid=(\d+)`)[1])
		s.childrenMustBeClean(fmt.Sprintf("while generation %d starts", generation))
		s.Signal(paused, syscall.SIGUSR1)
		if r := s.waitResult(result); r.Err != "" {
			t.Fatalf("Upgrade: %s", r.Err)
		}
		s.WaitAlone()
		s.probed(fmt.Sprintf("generation %d", generation))
		s.childrenMustBeClean(fmt.Sprintf("after the upgrade to generation %d", generation))
		// The new process itself has the variable no more.
		if env := s.mustGet("/env"); strings.Contains(env, "GRACE_") {
			t.Errorf("generation %d has a variable of ours:\n%s", generation, env)
		}
	}
	// In probation, and rolled back.
	s.misbehave("exit=7@check")
	if r := s.upgrade(); r.Err == "" {
		t.Fatal("the upgrade to a process that exits did not fail")
	}
	s.childrenMustBeClean("after a failed upgrade")
}

// In probation both are there; the new process serves.
func TestGrandchildrenInProbation(t *testing.T) {
	s := startServer(t, "-probation", "1h")
	s.Signal(s.Pid(), syscall.SIGUSR2)
	s.WaitLine(`standing by`)
	s.childrenMustBeClean("in probation")
	s.Signal(s.filePid(), syscall.SIGKILL)
	s.WaitLine(`msg="grace: rolled back`)
	s.childrenMustBeClean("rolled back")
	if got := s.servingPid(); got != s.Pid() {
		t.Errorf("process %d serves, want %d", got, s.Pid())
	}
}

func TestLeakedVariable(t *testing.T) {
	for name, value := range map[string]string{
		"of a living process": fmt.Sprintf("version=1,parent=%d,socket=1,ready=3,control=4,first=5,count=1", os.Getpid()),
		"of another process":  "version=1,parent=1,socket=12345,ready=1,control=2,first=0,count=3",
		"nonsense":            "yes",
		"empty":               "",
	} {
		t.Run(name, func(t *testing.T) {
			s := startServerAs(t, proctest.Command{
				Path: proctest.Build(t, serverPackage), Args: []string{"-probation", "0s"}, Env: []string{"GRACE_HANDOVER=" + value},
			})
			if s.Count(`an environment variable of another process was ignored`) != 1 {
				t.Error("the log does not say that the variable was ignored")
			}
			if got := s.mustGet("/gen"); got != "1" {
				t.Errorf("generation %s, want 1", got)
			}
			s.childrenMustBeClean("with a leaked variable")
			s.mustUpgrade()
			if got := s.mustGet("/gen"); got != "2" {
				t.Errorf("generation %s, want 2", got)
			}
			s.childrenMustBeClean("after an upgrade")
		})
	}
}

// A script that is started as the new process leaks variable and descriptors to
// another server before it execs the real one.
func TestVariableLeakedByAScript(t *testing.T) {
	dir := t.TempDir()
	binary := proctest.Build(t, serverPackage)
	script := filepath.Join(dir, "start")
	text := fmt.Sprintf("#!/bin/sh\n(%s -http tcp=127.0.0.1:0 -pidfile %s &)\nexec %s \"$@\"\n", binary, filepath.Join(dir, "other.pid"), binary)
	if err := proctest.WriteProgram(script, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	s := startServer(t, "-exec", script, "-probation", "0s")
	old := s.filePid()
	s.Signal(old, syscall.SIGUSR2)
	s.WaitLine(`an environment variable of another process was ignored`)
	s.WaitLine(`msg="grace: serving".* generation=2`)
	s.WaitLine(`msg="grace: serving".* generation=1`)
	s.WaitGone(old)
	if got := s.mustGet("/gen"); got != "2" {
		t.Errorf("generation %s, want 2", got)
	}
	other, err := os.ReadFile(filepath.Join(dir, "other.pid"))
	if err != nil {
		t.Fatal(err)
	}
	pid := atoi(t, strings.TrimSpace(string(other)))
	if pid == s.filePid() {
		t.Error("both have the same PID file")
	}
	s.Signal(pid, syscall.SIGTERM)
	s.WaitGone(pid)
}
