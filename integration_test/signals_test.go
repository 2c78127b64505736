//go:build linux

package integration_test

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/proctest"
)

// generations gives the living processes of the server: those that were alive
// when the last of them had been found, so that one which ended meanwhile is not
// counted beside its successor's successor. One that has not called exec is not
// one: package os forks a process that ends at once, the first time that it is
// asked for a process, to see whether the kernel can do pidfds.
func (s *server) generations() []int {
	var pids []int
	for _, found := range s.All() {
		if st, ok := proctest.ReadStat(found.Pid); ok && !st.Dead() && !st.Exiting && !st.Forked {
			pids = append(pids, st.Pid)
		}
	}
	return pids
}

// A census counts the generations all the time.
type census struct {
	stop chan struct{}
	wg   sync.WaitGroup
	most []int
}

func (s *server) startCensus() *census {
	c := &census{stop: make(chan struct{})}
	c.wg.Go(func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			if now := s.generations(); len(now) > len(c.most) {
				c.most = now
			}
			select {
			case <-tick.C:
			case <-c.stop:
				return
			}
		}
	})
	return c
}

func (c *census) mustBeAtMostTwo(t testing.TB) {
	t.Helper()
	close(c.stop)
	c.wg.Wait()
	if len(c.most) > 2 {
		t.Errorf("%d generations were alive at once: %v", len(c.most), c.most)
	}
}

// signalFile sends a signal to the pid in the PID file, and says which that was.
func (s *server) signalFile(sig syscall.Signal) int {
	s.t.Helper()
	for {
		pid := s.filePid()
		err := syscall.Kill(pid, sig)
		if err == nil {
			return pid
		}
		if !errors.Is(err, syscall.ESRCH) {
			s.t.Fatalf("signal %v to process %d: %v", sig, pid, err)
		}
	}
}

// TestManySignals sends 200 SIGUSR2, a half of them at once and the others with
// a request between two.
func TestManySignals(t *testing.T) {
	s := startServer(t, "-probation", "20ms")
	c := s.startCensus()
	for i := range 199 {
		s.signalFile(syscall.SIGUSR2)
		if i >= 100 {
			s.servingPid()
		}
	}
	// The last one counts if the process that it was sent to was the one to
	// send it to, and had not counted another one a moment before.
	for {
		before := s.Living()
		pid := s.filePid()
		repeats := fmt.Sprintf(`it counts as one" from=%d `, pid)
		repeated := s.Count(repeats)
		if s.signalFile(syscall.SIGUSR2) != pid || s.filePid() != pid {
			continue
		}
		done := false
		proctest.WaitFor(t, proctest.Limit, "a process that was started after the last signal, alone", func() bool {
			now := s.All()
			done = len(now) == 1 && !slices.Contains(before, now[0].Pid) &&
				s.Count(fmt.Sprintf(`passed on" from=\d+ new=%d$`, now[0].Pid)) == 0 // else it starts another
			return done || s.Count(repeats) > repeated
		})
		if done {
			break
		}
	}
	pid := s.WaitAlone()
	if s.filePid() != pid || s.servingPid() != pid {
		t.Errorf("process %d is left, the PID file names %d, %d answers", pid, s.filePid(), s.servingPid())
	}
	c.mustBeAtMostTwo(t)
	gen := atoi(t, s.mustGet("/gen"))
	proctest.WaitFor(t, proctest.Limit, "a line of each process that it serves", func() bool { return s.Count(`msg="grace: serving"`) >= gen })
	begun, served := s.Count(`msg="grace: upgrade begins"`), s.Count(`msg="grace: serving"`)
	if begun != gen-1 || served != gen || gen < 3 {
		t.Errorf("%d upgrades began and %d processes served; generation %d is left", begun, served, gen)
	}
	if n := s.Count(`level=(ERROR|WARN)`); n > 0 {
		t.Errorf("%d errors or warnings were logged, want none", n)
	}
	serves := map[string]bool{}
	for _, l := range s.Lines() {
		if m := regexp.MustCompile(`msg="grace: serving" from=(\d+)`).FindStringSubmatch(l); m != nil {
			serves[m[1]] = true
		}
	}
	for _, l := range s.Lines() {
		if m := regexp.MustCompile(`standing by" .*new=(\d+)`).FindStringSubmatch(l); m != nil && !serves[m[1]] {
			t.Errorf("process %s has not said that it serves: %s", m[1], l)
		}
	}
}

// TestSignalsWhileStarting: what is asked for while the new process is starting may
// want a binary newer than the one that starts; it leads to one more upgrade.
func TestSignalsWhileStarting(t *testing.T) {
	for _, step := range []string{"start", "check"} {
		t.Run(step, func(t *testing.T) {
			s := startServer(t, "-probation", "0")
			old := s.Pid()
			c := s.startCensus()
			s.misbehave("pause@" + step)
			s.Signal(old, syscall.SIGUSR2)
			new := atoi(t, s.WaitLine(`^paused at \S+ pid=(\d+)`)[1])
			asked := s.beginUpgrade()
			s.waitQueued(1)
			for range 2 {
				s.signalAnew(old, syscall.SIGUSR2, `upgrade queued`)
			}
			s.Signal(new, syscall.SIGUSR1)
			got := s.waitResult(asked)
			s.WaitGone(old)
			s.WaitGone(new)
			pid := s.WaitAlone()
			if gen := s.mustGet("/gen"); gen != "3" {
				t.Errorf("generation %s is left, want 3", gen)
			}
			if s.filePid() != pid || s.servingPid() != pid {
				t.Errorf("process %d is left, the PID file names %d, %d answers", pid, s.filePid(), s.servingPid())
			}
			if !slices.Equal(got.Is, []string{"ErrHandedOver"}) {
				t.Errorf("Upgrade returned %+v, want ErrHandedOver", got)
			}
			c.mustBeAtMostTwo(t)
		})
	}
}

// TestSignalWhileStartingThatFails: what was asked for meanwhile is not lost
// with a new process that fails.
func TestSignalWhileStartingThatFails(t *testing.T) {
	s := startServer(t, "-probation", "0")
	old := s.Pid()
	s.misbehave("pause@check")
	s.Signal(old, syscall.SIGUSR2)
	new := atoi(t, s.WaitLine(`^paused at \S+ pid=(\d+)`)[1])
	asked := s.beginUpgrade()
	s.waitQueued(1)
	s.signalAnew(old, syscall.SIGUSR2, `upgrade queued`)
	s.Signal(new, syscall.SIGKILL)
	if got := s.waitResult(asked); got.Err != "" {
		t.Errorf("Upgrade returned %+v, want nil", got)
	}
	s.WaitGone(old)
	if pid := s.WaitAlone(); s.servingPid() != pid || s.mustGet("/gen") != "2" {
		t.Errorf("process %d of generation %s is left; want it to serve, of generation 2", pid, s.mustGet("/gen"))
	}
}

// waitQueued waits until n requests for an upgrade wait for the one under way.
func (s *server) waitQueued(n int) {
	s.t.Helper()
	proctest.WaitFor(s.t, proctest.Limit, fmt.Sprintf("%d requests to wait their turn", n), func() bool {
		return s.Count(`msg="grace: upgrade queued" .*until="the upgrade under way is over"`) >= n
	})
}

// signalAnew sends a signal to a process, again and again until it counts as
// another one than the same signal a moment before, which a line of the log shows.
func (s *server) signalAnew(pid int, sig syscall.Signal, counts string) {
	s.t.Helper()
	before := s.Count(counts)
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	proctest.WaitFor(s.t, proctest.Limit, fmt.Sprintf("%v to count", sig), func() bool {
		if s.Count(counts) > before {
			return true
		}
		select {
		case <-again.C:
			if s.Has(pid) { // it may end by that
				syscall.Kill(pid, sig)
			}
		default:
		}
		return false
	})
}

// mustStopAll: nothing of the server is left, and the process that it began
// with, or the one that came to us, has ended cleanly.
func (s *server) mustStopAll(pids ...int) {
	s.t.Helper()
	s.WaitAllGone()
	for _, pid := range pids {
		if ws := s.WaitExit(pid); ws != 0 {
			s.t.Errorf("process %d has ended with %v, want exit status 0", pid, ws)
		}
	}
	if _, err := os.Stat(s.pidFile); !errors.Is(err, os.ErrNotExist) {
		s.t.Errorf("the PID file is still there")
	}
}

// TestTermDuringUpgrade: the new process is killed, the old one stops, nothing is left.
func TestTermDuringUpgrade(t *testing.T) {
	for _, step := range []string{"start", "manifest", "listen", "check"} {
		t.Run(step, func(t *testing.T) {
			s := startServer(t, "-drain", "10m")
			s.misbehave("pause@" + step)
			h := s.hold()
			result := s.beginUpgrade()
			new := atoi(t, s.WaitLine(`^paused at \S+ pid=(\d+)`)[1])
			s.Signal(s.Pid(), syscall.SIGTERM)
			if got := s.waitResult(result); !slices.Equal(got.Is, []string{"ErrStopped"}) {
				t.Errorf("Upgrade returned %+v, want ErrStopped", got)
			}
			s.WaitGone(new)
			h.release()
			s.mustStopAll(s.Pid())
		})
	}
}

// TestTermTwice: the second one stops at once, though a request hangs.
func TestTermTwice(t *testing.T) {
	for name, sigs := range map[string][2]syscall.Signal{
		"TERM TERM": {syscall.SIGTERM, syscall.SIGTERM},
		"TERM INT":  {syscall.SIGTERM, syscall.SIGINT},
		"QUIT TERM": {syscall.SIGQUIT, syscall.SIGTERM},
	} {
		t.Run(name, func(t *testing.T) {
			s := startServer(t, "-drain", "10m")
			h := s.hold()
			s.Signal(s.Pid(), sigs[0])
			s.WaitLine(`msg="grace: stopping".* now=false`)
			s.signalAnew(s.Pid(), sigs[1], `msg="grace: stopping".* now=true`)
			h.cutOff()
			s.mustStopAll(s.Pid())
			if s.Count(`level=WARN .*drained; connections were cut off.* cut=1$`) != 1 {
				t.Errorf("no line says that a connection was cut off")
			}
		})
	}
}

// TestTermOnce: what has begun is finished.
func TestTermOnce(t *testing.T) {
	s := startServer(t, "-drain", "10m")
	h := s.hold()
	s.Signal(s.Pid(), syscall.SIGTERM)
	s.WaitLine(`msg="grace: stopping".* now=false`)
	h.release()
	s.mustStopAll(s.Pid())
}

// TestTermAfterHandOver: TERM to the pid that the PID file named a moment ago
// ends the service, not only the old process.
func TestTermAfterHandOver(t *testing.T) {
	for name, args := range map[string][]string{
		"in probation": {"-probation", "10m", "-drain", "10m"},
		"in drain":     {"-probation", "0", "-drain", "10m"},
	} {
		t.Run(name, func(t *testing.T) {
			s := startServer(t, args...)
			old := s.Pid()
			h := s.hold()
			s.Signal(old, syscall.SIGUSR2)
			s.WaitLine(map[string]string{"in probation": `standing by"`, "in drain": `upgrade done; draining"`}[name])
			new := s.successor(old)
			h2 := s.hold()
			s.Signal(old, syscall.SIGTERM)
			s.WaitLine(fmt.Sprintf(`passed on" from=%d new=%d`, old, new))
			s.waitRefused()
			h2.release()
			s.WaitGone(new)
			h.release()
			s.mustStopAll(old)
			if n := s.Count(`level=(ERROR|WARN)`); n > 0 {
				t.Errorf("%d errors or warnings were logged, want none", n)
			}
		})
		t.Run(name+", twice", func(t *testing.T) {
			s := startServer(t, args...)
			old := s.Pid()
			h := s.hold()
			s.Signal(old, syscall.SIGUSR2)
			s.WaitLine(map[string]string{"in probation": `standing by"`, "in drain": `upgrade done; draining"`}[name])
			s.successor(old)
			h2 := s.hold()
			s.Signal(old, syscall.SIGTERM)
			s.WaitLine(`msg="grace: stopping".* now=false`)
			s.signalAnew(old, syscall.SIGTERM, `msg="grace: stopping".* now=true`)
			h.cutOff()
			h2.cutOff()
			s.mustStopAll(old)
		})
	}
}

// TestTermToNew: the new process is the service; the old one, which still stands by,
// goes as well.
func TestTermToNew(t *testing.T) {
	s := startServer(t, "-probation", "10m", "-drain", "10m")
	old := s.Pid()
	h := s.hold()
	s.Signal(old, syscall.SIGUSR2)
	s.WaitLine(`standing by"`)
	s.signalFile(syscall.SIGTERM)
	s.waitRefused()
	h.release()
	s.mustStopAll(old)
}

// notifyContexts are the two ways in which a program uses signal.NotifyContext for Run:
// besides grace's own stop signals, and in place of them.
var notifyContexts = map[string][]string{
	"besides grace":          {"-notify", "-drain", "10m"},
	"and grace handles none": {"-notify", "-drain", "10m", "-nostop"},
}

// TestNotifyContext: a stop signal that ends Run's context finishes what has begun, at
// every moment of a hand-over, whichever of the two processes get it.
func TestNotifyContext(t *testing.T) {
	for how, args := range notifyContexts {
		for _, m := range moments {
			for _, group := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%s/group=%v", how, m.name, group), func(t *testing.T) {
					s := startServer(t, slices.Concat(args, m.args)...)
					requests := []*held{s.comeTo(m)}
					if m.new {
						s.successor(s.Pid())
						requests = append(requests, s.hold())
					}
					if group {
						s.signalGroup(syscall.SIGTERM)
					} else {
						s.Signal(s.Pid(), syscall.SIGTERM)
					}
					s.waitRefused()
					for _, h := range requests {
						h.release()
					}
					s.mustStopAll(s.Pid())
					s.mustCutNothing()
				})
			}
		}
	}
}

// TestNotifyContextUpgrade: an upgrade under load loses nothing, and ends no context but
// that of the new process once SIGINT reaches it.
func TestNotifyContextUpgrade(t *testing.T) {
	for how, args := range notifyContexts {
		t.Run(how, func(t *testing.T) {
			s := startServer(t, args...)
			l := s.startLoad(4)
			for range 2 {
				s.mustUpgrade()
			}
			l.mustLoseNothing(t)
			h, pid := s.hold(), s.filePid()
			s.Signal(pid, syscall.SIGINT)
			s.waitRefused()
			h.release()
			s.mustStopAll(s.Pid(), pid)
			s.mustCutNothing()
		})
	}
}

// waitRefused waits until no process listens any more.
func (s *server) waitRefused() {
	s.t.Helper()
	proctest.WaitFor(s.t, proctest.Limit, "a refused connection", func() bool {
		_, err := s.get("/pid")
		return errors.Is(err, syscall.ECONNREFUSED)
	})
}

// TestUpgradeAfterHandOver: USR2 to the pid that the PID file named a moment ago
// upgrades the process that it names now, once the old one is gone.
func TestUpgradeAfterHandOver(t *testing.T) {
	for name, args := range map[string][]string{
		"in probation": {"-probation", "1s", "-drain", "10m"},
		"in drain":     {"-probation", "0", "-drain", "10m"},
	} {
		t.Run(name, func(t *testing.T) {
			s := startServer(t, args...)
			old := s.Pid()
			c := s.startCensus()
			h := s.hold()
			s.Signal(old, syscall.SIGUSR2)
			s.WaitLine(map[string]string{"in probation": `standing by"`, "in drain": `upgrade done; draining"`}[name])
			new := s.successor(old)
			for range 3 {
				s.signalAnew(old, syscall.SIGUSR2, fmt.Sprintf(`passed on" from=%d new=%d`, old, new))
			}
			h.release()
			s.WaitGone(old)
			s.WaitGone(new)
			pid := s.WaitAlone()
			if n := s.Count(fmt.Sprintf(`upgrade queued" from=%d until="the old process, pid %d, is gone"`, new, old)); n != 3 {
				t.Errorf("%d of 3 upgrades waited their turn in the log of the new process", n)
			}
			if gen := s.mustGet("/gen"); gen != "3" || s.filePid() != pid {
				t.Errorf("generation %s is left with pid %d, and the PID file names %d; want 3", gen, pid, s.filePid())
			}
			c.mustBeAtMostTwo(t)
		})
	}
}

// SIGHUP to the whole process group does not end a new process that is on its way to
// New; what happened to its default action is nothing that the program sees later.
func TestHangupBeforeNew(t *testing.T) {
	s := startServer(t, "-probation", "0")
	s.misbehave("pause@start")
	old := s.Pid()
	s.Signal(old, syscall.SIGUSR2)
	new := atoi(t, s.WaitLine(`^paused at start pid=(\d+)`)[1])
	for _, pid := range []int{old, new} {
		s.Signal(pid, syscall.SIGHUP)
	}
	s.Signal(new, syscall.SIGUSR1)
	s.WaitGone(old)
	if pid := s.WaitAlone(); pid != new || s.servingPid() != new {
		t.Errorf("process %d is left; want the new one, %d", pid, new)
	}
	s.Signal(new, syscall.SIGHUP)
	if gen := s.mustGet("/gen"); gen != "2" {
		t.Errorf("generation %s serves after SIGHUP, want 2", gen)
	}
}
