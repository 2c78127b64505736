//go:build linux

package integration_test

import (
	"fmt"
	"syscall"
	"testing"

	"github.com/julofinance/grace/v3/internal/proctest"
)

// TERM to the old process, to the new one or to both, at each step of a hand-over:
// which process serves then, and which has ended. TestStopAtEachStep is the same in one
// process.
func TestTermAtEachStep(t *testing.T) {
	for _, step := range []struct {
		name string
		// serves: the old process does, after a signal to the new one; else, and after
		// one to the old one, no process does.
		serves bool
	}{
		{"executed", true}, // and handles no signals yet
		{"starting", true},
		{"ready is said", true}, // the old process is stopped meanwhile
		{"go is heard", false},
		{"accepting is said", false}, // the old process is stopped meanwhile
		{"standing by", false},
		{"draining", false},
	} {
		for _, to := range []string{"old", "new", "both"} {
			t.Run(step.name+"/"+to, func(t *testing.T) {
				t.Parallel()
				probation := "1h"
				if step.name == "draining" {
					probation = "0"
				}
				s := startServer(t, "-probation", probation, "-drain", "10m")
				old := s.Pid()
				next, goOn := s.stepTo(t, step.name)
				if to != "old" {
					s.Signal(next, syscall.SIGTERM)
				}
				if to == "new" {
					s.waitStopping(next)
				}
				if to != "new" {
					s.Signal(old, syscall.SIGTERM)
					if st, _ := proctest.ReadStat(old); st.State != 'T' { // else it hears of it when it goes on
						s.waitStopping(old)
					}
				}
				if to == "old" && (step.name == "executed" || step.name == "starting") {
					s.WaitLine(fmt.Sprintf(`msg="grace: upgrade given up; this process stops" from=%d new=%d`, old, next))
				}
				goOn()
				s.WaitGone(next)
				if to == "new" && step.serves {
					s.WaitLine("upgrade failed")
					if got, file := s.servingPid(), s.filePid(); got != old || file != old {
						t.Errorf("%d serves, and the PID file names %d; want %d", got, file, old)
					}
					return
				}
				s.mustStopAll(old)
			})
		}
	}
}

// waitStopping waits until a process has heard the signal, or has died of it, as it
// does before it handles any.
func (s *server) waitStopping(pid int) {
	s.t.Helper()
	said := fmt.Sprintf(`msg="grace: (stopping|the same signal again.*)" from=%d `, pid)
	proctest.WaitFor(s.t, proctest.Limit, "the signal to arrive", func() bool {
		st, ok := proctest.ReadStat(pid)
		return !ok || st.Dead() || s.Count(said) > 0
	})
}

// stepTo begins an upgrade, and gives the new process, at that step of it, and what
// lets it go on.
func (s *server) stepTo(t *testing.T, step string) (next int, goOn func()) {
	s.t.Helper()
	old := s.Pid()
	pause := func(at string) int {
		s.misbehave("pause@" + at)
		s.Signal(old, syscall.SIGUSR2)
		return atoi(s.t, s.WaitLine(`^paused at \S+ pid=(\d+)`)[1])
	}
	resume := func() { syscall.Kill(next, syscall.SIGUSR1) } // it may be gone
	stop := func() { s.Halt(old) }
	cont := func() { s.Signal(old, syscall.SIGCONT) }
	switch step {
	case "executed":
		next = pause("start")
		return next, resume
	case "starting":
		next = pause("check")
		return next, resume
	case "ready is said":
		next = pause("check")
		stop()
		resume()
		return next, cont
	case "go is heard", "accepting is said":
		next = pause("listen")
		trace := injectInto(t, next, "/^rename:delay_exit=600000000", "")
		resume()
		s.waitFilePid(next)
		if step == "go is heard" {
			return next, func() { trace.Kill() }
		}
		stop()
		trace.Kill()
		s.WaitLine(`msg="grace: serving".* generation=2`)
		return next, cont
	case "standing by":
		s.Signal(old, syscall.SIGUSR2)
		s.WaitLine(`standing by"`)
		return s.successor(old), func() {}
	case "draining":
		h := s.hold()
		s.Signal(old, syscall.SIGUSR2)
		s.WaitLine(`upgrade done; draining"`)
		return s.successor(old), h.release
	}
	s.t.Fatalf("no step %q", step)
	return 0, nil
}

// Where a sandbox leaves nothing but fork(2), a new process that hangs in its start
// can't be killed before it has executed its program. When it does, it is not
// waited for any more: it takes nothing, also when the old process has been stopped, which is not
// its death. (TestLateChildTakesNothing is the same in one process.)
func TestLateForkTakesNothing(t *testing.T) {
	s := startServerAs(t, proctest.Command{
		Path: proctest.Build(t, serverPackage), Args: []string{"-sandbox", "-probation", "0", "-drain", "1s"},
		Env: []string{"GOGC=off"}, // a collection would wait for the fork
	})
	release := s.holdExec(s.Pid())
	s.Signal(s.Pid(), syscall.SIGUSR2)
	s.hanging(s.Pid())
	s.Signal(s.Pid(), syscall.SIGTERM)
	s.WaitLine(`grace: drained`)
	s.Signal(s.Pid(), syscall.SIGKILL) // it might wait for what strace holds
	s.WaitGone(s.Pid())
	release()
	s.WaitLine(`server: exits.*does not wait for it any more`)
	s.WaitAllGone()
	if s.Count(`^listening http`) != 1 || s.Count(`grace: serving`) != 1 {
		t.Error("a process that is not waited for has taken a listener")
	}
}
