//go:build linux

package integration_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/julofinance/grace/v3/internal/proctest"
)

// Faults of the control channel, of wait and of kill, as strace makes them.

// inject makes each of the calls fail with this error.
func inject(t *testing.T, calls, fault string) []string {
	t.Helper()
	return []string{"-e", "trace=" + calls, "-e", "inject=" + calls + ":error=" + fault, "-o", filepath.Join(t.TempDir(), "trace")}
}

// attach makes the calls of a running process fail from now on.
func attach(t *testing.T, pid int, calls, fault string) *proctest.Process {
	t.Helper()
	return attachWith(t, pid, inject(t, calls, fault))
}

// attachWith attaches strace with these options, and gives it.
func attachWith(t *testing.T, pid int, options []string) *proctest.Process {
	t.Helper()
	strace, err := exec.LookPath("strace")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("CI needs strace: %v", err)
		}
		t.Skipf("system calls are made to fail with strace: %v", err)
	}
	p := proctest.Start(t, proctest.Command{Path: strace, Args: append([]string{"-f", "-qq", "-e", "signal=none", "-p", strconv.Itoa(pid)}, options...)})
	proctest.WaitFor(t, proctest.Limit, "strace to have all threads", func() bool {
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
		for _, task := range tasks {
			if b, err := os.ReadFile(task); err != nil || bytes.Contains(b, []byte("TracerPid:\t0\n")) {
				return false
			}
		}
		return len(tasks) > 0
	})
	return p
}

// What the kernel refuses now and then, on either side, is tried again: nothing
// is lost, and everything moves.
func TestMoveWhileTheChannelFails(t *testing.T) {
	for fault, call := range map[string]string{
		"ENOMEM": "recvmsg", "ENOBUFS": "sendmsg", "ETOOMANYREFS": "sendmsg", "EAGAIN": "sendmsg",
	} {
		t.Run(call+"-"+fault, func(t *testing.T) {
			t.Parallel()
			const kept, upgrades = 200, 3
			m := startMoverAs(t, underStrace(t, inject(t, call, fault+":when=1+2"), proctest.Build(t, moveServerPackage)))
			var clients []*client
			for range kept {
				clients = append(clients, m.dial())
			}
			for range upgrades {
				if got := answers(clients); got[0] > 0 || len(got) != 1 {
					t.Fatalf("answers by pid, 0 for none: %v; want all by one", got)
				}
				old := clients[0].last.pid
				m.Signal(old, syscall.SIGUSR2)
				if moved, _, cut := m.drained(); moved != kept || cut != 0 {
					t.Errorf("moved %d and cut off %d connections; want %d and 0", moved, cut, kept)
				}
				m.WaitGone(old)
			}
			if got := answers(clients); got[0] > 0 || len(got) != 1 {
				t.Errorf("answers by pid, 0 for none: %v; want all by one", got)
			}
			m.Signal(clients[0].last.pid, syscall.SIGKILL)
			m.WaitAllGone()
		})
	}
}

// In the drain the old process can read the channel no more. The new process does not
// take that for its death: what it was offered stays the old one's, and no third
// generation begins.
func TestOldCannotReadInTheDrain(t *testing.T) {
	t.Parallel()
	m := startMover(t, "-idlegrace", "1m")
	clients := m.many(300)
	m.holdAll(clients)
	pid := m.upgrade()
	m.WaitLine(`msg="grace: upgrade done`)
	m.mustReach(pid)
	attach(t, m.Pid(), "recvmsg", "ENOMEM")
	keeper, clients := clients[:1], clients[1:] // its request keeps the old process from ending
	m.releaseAll(clients, m.Pid())
	m.WaitLine(`connections can't be moved to the new process any more`)
	if got := answers(clients); got[m.Pid()] != len(clients) {
		t.Errorf("answers by pid, 0 for none: %v; want all by %d", got, m.Pid())
	}
	m.WaitLine(fmt.Sprintf(`the new process can't be heard any more.*from=%d .*cannot allocate memory`, m.Pid()))
	m.Signal(pid, syscall.SIGUSR2)
	m.WaitLine(fmt.Sprintf(`upgrade queued" from=%d until="the old process`, pid))
	m.releaseAll(keeper, m.Pid())
	keeper[0].Close()
	m.askAgain(clients)
	if moved, _, cut := m.drained(); moved != 0 || cut != 0 {
		t.Errorf("moved %d and cut off %d, want none", moved, cut)
	}
	m.WaitGone(m.Pid())
	m.WaitLine(fmt.Sprintf(`the old process is gone" from=%d `, pid))
	m.WaitLine(fmt.Sprintf(`standing by" from=%d `, pid)) // the upgrade that has waited
}

// In probation the old process can read the channel no more: it can't tell whether the
// new one is well, kills it, and accepts again when it is dead.
func TestOldCannotReadInProbation(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-probation", "2s")
	old := s.Pid()
	result := s.beginUpgrade()
	s.WaitLine(`standing by"`)
	new := s.successor(old)
	attach(t, old, "recvmsg", "ENOMEM")
	got := s.waitResult(result)
	if !slices.Equal(got.Is, []string{"ErrRolledBack", "ErrUnhealthy"}) || got.Pid != new || got.Status != "signal: killed" {
		t.Errorf("Upgrade returned %+v; want ErrRolledBack and ErrUnhealthy, %d killed", got, new)
	}
	s.WaitGone(new)
	if pid := s.servingPid(); pid != old || s.filePid() != old {
		t.Errorf("process %d answers and the PID file names %d, want %d", pid, s.filePid(), old)
	}
	s.Kill()
}

// In probation the old process can send nothing more: it can't ask the new one whether
// it is well, which is no reason to kill it.
func TestOldCannotSendInProbation(t *testing.T) {
	for _, errno := range []string{"ENOBUFS", "EPERM", "ETOOMANYREFS"} {
		t.Run(errno, func(t *testing.T) {
			t.Parallel()
			s := startServer(t, "-probation", "2s", "-drain", "10m")
			old := s.Pid()
			h := s.hold() // else old may be gone before it is told to stop
			result := s.beginUpgrade()
			s.WaitLine(`standing by"`)
			new := s.successor(old)
			attach(t, old, "sendmsg", errno)
			l := s.startLoad(1)
			if got := s.waitResult(result); got.Err != "" {
				t.Errorf("Upgrade returned %+v; want success", got)
			}
			s.WaitLine(fmt.Sprintf(`the new process can't be asked whether it is well.* from=%d`, old))
			s.Signal(old, syscall.SIGTERM) // which it can't pass on
			s.WaitLine(fmt.Sprintf(`the other process of the hand-over can't be told" from=%d what=stop`, old))
			h.release()
			s.WaitGone(old)
			l.mustLoseNothing(t)
			if pid := s.servingPid(); pid != new || s.filePid() != new {
				t.Errorf("process %d answers and the PID file names %d, want %d", pid, s.filePid(), new)
			}
			s.Kill()
		})
	}
}

// Before the new process accepts, one of the two can't be heard any more: the old one
// serves on alone.
func TestChannelBreaksBeforeReady(t *testing.T) {
	for side, tc := range map[string]struct{ calls, ready, want string }{
		"old":         {"recvmsg", "10m", "ErrProtocol"}, // killed, since it can't be heard
		"new":         {"recvmsg", "10m", "ErrExited"},   // has given up
		"new is mute": {"sendmsg", "20s", "ErrReadyTimeout"},
	} {
		t.Run(side, func(t *testing.T) {
			t.Parallel()
			s := startServer(t, "-probation", "0", "-ready", tc.ready)
			s.misbehave("pause@check")
			before := s.servingPid()
			result := s.beginUpgrade()
			new := atoi(t, s.WaitLine(`^paused at \S+ pid=(\d+)`)[1])
			whom := new
			if side == "old" {
				whom = before
			}
			l := s.startLoad(1)
			attach(t, whom, tc.calls, "ENOMEM")
			s.Signal(new, syscall.SIGUSR1)
			if got := s.waitResult(result); !slices.Equal(got.Is, []string{tc.want}) || got.Pid != new {
				t.Errorf("Upgrade returned %+v; want %s of process %d", got, tc.want, new)
			}
			s.WaitGone(new)
			l.mustLoseNothing(t)
			if len(l.pids) != 1 || l.pids[before] == 0 {
				t.Errorf("requests were answered by %v, want by %d alone", l.pids, before)
			}
			if pid := s.filePid(); pid != before {
				t.Errorf("the PID file names %d, want %d", pid, before)
			}
			s.Kill()
		})
	}
}

// The new process is stopped as soon as it is ready. The old one kills it, and the log
// says why.
func TestStoppedAfterReady(t *testing.T) {
	for _, probation := range []string{"2s", "0"} {
		t.Run("probation "+probation, func(t *testing.T) {
			t.Parallel()
			s := startServer(t, "-probation", probation, "-drain", "10m")
			h := s.hold() // without it the old process would be gone before the new one is stopped
			before := s.footprint()
			result := s.beginUpgrade()
			s.WaitLine(`standing by"`)
			new := s.successor(before.pid)
			s.Halt(new)
			got := s.waitResult(result)
			if probation != "0" && (!slices.Equal(got.Is, []string{"ErrRolledBack", "ErrUnhealthy"}) || got.Pid != new) {
				t.Errorf("Upgrade returned %+v; want ErrUnhealthy, pid %d", got, new)
			}
			s.WaitLine(fmt.Sprintf(`rolled back; this process accepts again" from=%d .*did not answer for 10s`, before.pid))
			if pid := s.servingPid(); pid != before.pid {
				t.Errorf("process %d answers, want %d", pid, before.pid)
			}
			h.release()
			before.goroutines = "" // the load and the held request have their own
			if pid := s.WaitAlone(); pid != before.pid || s.filePid() != pid {
				t.Errorf("process %d is left and the PID file names %d, want %d", pid, s.filePid(), before.pid)
			}
		})
	}
}

// The old process can't wait for the new one: that is not the end of the new one.
func TestWaitFails(t *testing.T) {
	for name, args := range map[string][]string{
		"EPERM":                       inject(t, "wait4,waitid", "EPERM"),
		"EINVAL":                      inject(t, "wait4,waitid", "EINVAL"),
		"the program reaps":           nil,
		"the program reaps, no pidfd": inject(t, "pidfd_open,pidfd_send_signal", "ENOSYS"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := proctest.Build(t, serverPackage)
			if args != nil {
				c := underStrace(t, args, path)
				path = script(t, `exec %s %s "$@"`, c.Path, strings.Join(c.Args, " "))
			}
			s := startServerAs(t, proctest.Command{Path: path, Args: append([]string{"-probation", "1m"}, map[bool][]string{true: {"-reap"}}[strings.Contains(name, "reaps")]...)})
			old := s.servingPid()
			result := s.beginUpgrade()
			s.WaitLine(`standing by"`)
			new := s.successor(old)
			l := s.startLoad(1)
			proctest.WaitFor(t, proctest.Limit, "some answers", func() bool { return s.mustGet("/pid") == fmt.Sprint(new) })
			l.mustLoseNothing(t)
			if len(l.pids) != 1 || l.pids[new] == 0 || s.Count("rolled back") > 0 {
				t.Errorf("requests were answered by %v, want by %d alone", l.pids, new)
			}
			s.Signal(new, syscall.SIGKILL)
			got := s.waitResult(result)
			if !slices.Equal(got.Is, []string{"ErrRolledBack"}) || got.Pid != new {
				t.Errorf("Upgrade returned %+v; want ErrRolledBack, pid %d", got, new)
			}
			if pid := s.servingPid(); pid != old {
				t.Errorf("after the roll back process %d answers, want %d", pid, old)
			}
			s.Kill()
		})
	}
}

// The new process is not ready in time, and can't be killed: the old one says so,
// serves, and the next upgrade begins when the new one is gone.
func TestKillFails(t *testing.T) {
	t.Parallel()
	c := underStrace(t, inject(t, "kill,pidfd_send_signal", "EPERM"), proctest.Build(t, serverPackage))
	path := script(t, `exec %s %s "$@"`, c.Path, strings.Join(c.Args, " "))
	s := startServerAs(t, proctest.Command{Path: path, Args: []string{"-probation", "0", "-ready", "15s"}})
	old := s.servingPid()
	s.misbehave("hang@check")
	got := s.upgrade()
	if !slices.Equal(got.Is, []string{"ErrReadyTimeout"}) || !strings.Contains(got.Err, "can't be killed: operation not permitted") {
		t.Errorf("Upgrade returned %+v; want ErrReadyTimeout, and that the new process can't be killed", got)
	}
	s.WaitLine(fmt.Sprintf(`the new process can't be killed; .* new=%d .*hint="end it by hand`, got.Pid))
	result := s.beginUpgrade()
	s.WaitLine(`upgrade queued`)
	if pid := s.servingPid(); pid != old {
		t.Errorf("process %d answers, want %d", pid, old)
	}
	s.Signal(got.Pid, syscall.SIGKILL)
	s.WaitLine(`standing by"`)
	if got := s.waitResult(result); got.Err != "" {
		t.Errorf("the next upgrade: %+v", got)
	}
	s.WaitGone(old)
	s.Kill()
}

// The accept of the old process fails for good while the new one starts, and the old
// program gives up: that is no worse than if the old process had died. The new one
// serves, and clients that have connected wait for it.
func TestOldGivesUpWhileNewStarts(t *testing.T) {
	for _, dies := range []bool{false, true} {
		t.Run(fmt.Sprintf("new dies %v", dies), func(t *testing.T) {
			t.Parallel()
			s := startServer(t)
			s.misbehave("pause@check")
			old := s.Pid()
			h := s.hold()
			s.Signal(old, syscall.SIGUSR2)
			new := atoi(t, s.WaitLine(`^paused at \S+ pid=(\d+)`)[1])
			attach(t, old, "accept4", "ENOMEM")
			answer := make(chan string, 1)
			go func() {
				got, err := s.get("/pid")
				if err != nil {
					got = err.Error()
				}
				answer <- got
			}()
			s.WaitLine(fmt.Sprintf(`this process gives up while a new one is starting.* from=%d new=%d`, old, new))
			if dies {
				s.Signal(new, syscall.SIGKILL)
				s.WaitLine(fmt.Sprintf(`was to serve in place of this one, has ended; no process serves" from=%d`, old))
				h.release()
				s.WaitGone(old)
				<-answer
				if _, err := os.Stat(s.pidFile); !os.IsNotExist(err) {
					t.Errorf("the PID file is there when no process serves: %v", err)
				}
				return
			}
			s.Signal(new, syscall.SIGUSR1) // it is ready while the old process has a request to finish
			if got := <-answer; got != fmt.Sprint(new) {
				t.Errorf("a request that came meanwhile was answered %q, want by %d", got, new)
			}
			h.release()
			s.WaitGone(old)
			if pid := s.filePid(); pid != new {
				t.Errorf("the PID file names %d, want %d", pid, new)
			}
			s.mustUpgrade()
			s.Kill()
		})
	}
}
