//go:build linux

package integration_test

import (
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/julofinance/grace/v3/internal/proctest"
)

// TestSupervisedLinger: under each supervisor a stream is held over three upgrades, and one
// more of each process. The supervisor sees no change, and starts no second server. When the
// first process has ended monit sees the one that serves; the others watch grace-follow, which
// stays. A stop ends all processes: what ends by itself within DrainTimeout is not cut off, the
// rest is, and the service is down for the supervisor when no process is left. (pidproxy is not
// among them: at a stop it waits for nothing.)
func TestSupervisedLinger(t *testing.T) {
	for _, c := range []struct {
		name  string
		start func(t *testing.T, more ...string) *supervised
	}{
		{"grace-follow", startFollow},
		{"supervisord", func(t *testing.T, more ...string) *supervised {
			return startSupervisordFollow(t, "supervisord.conf", more...)
		}},
		{"runit", func(t *testing.T, more ...string) *supervised {
			return startRunScript(t, runners["runit"], "run-follow", more...)
		}},
		{"monit", startMonit},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := c.start(t, "-probation", "10ms", "-linger", "5", "-drain", "5s")
			all := s.lingerThrice()
			all[0].conn.Close()
			s.WaitGone(s.pids[0])
			s.mustSeeNoChange()
			if s.sees != nil { // monit looks at the file when the process that it knew has ended
				proctest.WaitFor(t, proctest.Limit, "the supervisor to see the process that serves", func() bool { return s.sees() == s.pid() })
			}
			halted := s.beginHalt()
			s.waitEndAsked(s.pids[1:3])
			mustLiveAll(all[1:])
			all[3].conn.Close()
			all[2].conn.Close()
			all[1].cutOff() // neither the first nor the one that serves
			halted()
			s.WaitGone(s.pid())
			s.mustBeDown()
			// Not mustLogAll: "stopped" of the last one is written when the lock is free already.
			if cut, ended := s.Count(`msg="grace: drained.* cut=1$`), s.Count(`msg="grace: drained.* cut=0$`); cut != 1 || ended != 3 {
				t.Errorf("of 4 processes with a stream each, %d have cut it off, and %d not; want 1 and 3", cut, ended)
			}
			s.stop(s.end)
		})
	}
}

// TestSupervisordAloneLingers: with nothing between, supervisord takes the first process for
// the service, as long as that lingers. A stop by it ends all.
func TestSupervisordAloneLingers(t *testing.T) {
	s := startSupervisordAlone(t, "-probation", "10ms", "-linger", "5", "-drain", "1s")
	all := s.lingerThrice()
	halted := s.beginHalt()
	s.WaitLine(fmt.Sprintf(`msg="grace: stopping" from=%d reason="process %d, which a supervisor takes for the service, was told to stop"`, s.pid(), s.pids[0]))
	for _, st := range all {
		st.cutOff()
	}
	halted()
	for _, pid := range s.pids {
		s.WaitGone(pid)
	}
	s.stop(s.end)
}

// lingerThrice upgrades three times, with a stream at each process from its beginning to the
// end. The supervisor must see nothing of it.
func (s *supervised) lingerThrice() (all []*stream) {
	s.t.Helper()
	s.before = s.status()
	all = append(all, s.stream("/websocket"))
	for range 3 {
		s.pids = append(s.pids, s.upgradeAndLinger())
		all = append(all, s.stream("/websocket"))
		mustLiveAll(all)
		s.mustSeeNoChange()
	}
	for i, st := range all {
		if st.pid != s.pids[i] {
			s.t.Errorf("stream %d is of process %d, want %d", i+1, st.pid, s.pids[i])
		}
	}
	if n := s.Count(`already running`); n > 0 {
		s.t.Errorf("the supervisor has started the server again %d times", n)
	}
	return all
}

// waitEndAsked waits until those that linger were told to end.
func (s *server) waitEndAsked(pids []int) {
	s.t.Helper()
	for _, pid := range pids {
		s.WaitLine(fmt.Sprintf(`msg="grace: the process that serves tells this one, which lingers, to end" from=%d `, pid))
	}
}

// mustBeDown: the one that has served is gone, and no other process of the service is left.
func (s *supervised) mustBeDown() {
	s.t.Helper()
	for _, pid := range s.pids {
		if s.Has(pid) {
			s.t.Errorf("the service is down for the supervisor, and process %d is there", pid)
		}
	}
}

// startFollow starts grace-follow, and nothing that watches it: what it has to be is there.
func startFollow(t *testing.T, more ...string) *supervised {
	t.Helper()
	addr := freeAddr(t)
	m := startUnder(t, "tcp", func(args []string) proctest.Command {
		args[1] = "tcp=" + addr
		return proctest.Command{Path: follow(t), Args: append(append([]string{args[3], proctest.Build(t, serverPackage)}, args...), more...)}
	})
	s := &supervised{mastered: m, status: func() string { return fmt.Sprint("there: ", m.Has(m.Pid())) }}
	s.halt = func() {
		s.Signal(s.Pid(), syscall.SIGTERM)
		if ws := s.WaitExit(s.Pid()); ws != 0 {
			t.Errorf("grace-follow ended with status %d, want 0", ws.ExitStatus())
		}
	}
	return s
}

// TestFollowAsPid1Lingers: when PID 1 of a container ends, the kernel ends all else. So it
// stays as long as a process lingers.
func TestFollowAsPid1Lingers(t *testing.T) {
	s, pid1 := startGroup(t, nil, "-probation", "10ms", "-linger", "5", "-drain", "1m")
	servers := func() (n int) {
		for _, p := range s.All() {
			if strings.HasPrefix(filepath.Base(proctest.Build(t, serverPackage)), p.Name) && !p.Dead() {
				n++
			}
		}
		return n
	}
	all, pids := []*stream{s.stream("/websocket")}, []int{}
	for range 3 {
		if r := s.upgrade(); r.Err != "" {
			t.Fatalf("upgrade: %+v", r)
		}
		pids = append(pids, all[len(all)-1].pid)
		s.WaitLine(fmt.Sprintf(`msg="grace: the old process lingers; this one may be upgraded" .*old=%d `, pids[len(pids)-1]))
		mustLiveAll(all)
		all = append(all, s.stream("/websocket"))
	}
	s.Signal(pid1, syscall.SIGTERM)
	s.waitEndAsked(pids)
	all[3].conn.Close() // of the one that serves, which stays for the others
	for i, st := range all[:3] {
		st.mustLive()
		st.conn.Close()
		proctest.WaitFor(t, proctest.Limit, "the end of a process that lingered", func() bool { return servers() <= 3-i })
	}
	s.WaitAllGone()
	if n := s.Count(`msg="grace: drained.* cut=0$`); n != 4 {
		t.Errorf("of 4 processes with a stream each, %d have ended in peace", n)
	}
}
