//go:build linux

package integration_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/julofinance/grace/v3/internal/proctest"
)

// TestPanicAfterReady: the new version panics soon after it is ready, twenty
// times, and the old one serves on. Lost are at most the requests that were in
// the dead process, one for each client.
func TestPanicAfterReady(t *testing.T) {
	const clients, upgrades = 3, 20
	s := startServer(t, "-probation", "1m")
	before := s.footprint()
	h := s.hold()
	l := s.startLoad(clients)
	new := map[int]bool{}
	for round := range upgrades {
		l.round.Store(int64(round))
		s.misbehave("panic-after-ready=300ms")
		got := s.upgrade()
		if !slices.Equal(got.Is, []string{"ErrRolledBack"}) || !got.Upgrade || got.Status != "exit status 2" {
			t.Fatalf("Upgrade returned %+v; want ErrRolledBack, exit status 2", got)
		}
		new[got.Pid] = true
		if pid := s.servingPid(); pid != before.pid {
			t.Fatalf("after the roll back process %d answers, want %d", pid, before.pid)
		}
		if pid := s.filePid(); pid != before.pid {
			t.Fatalf("after the roll back the PID file names %d, want %d", pid, before.pid)
		}
	}
	l.stop()
	h.release()
	if l.worst > 1 {
		t.Errorf("%d requests of one client failed in one upgrade; only the first can have been in the process that died", l.worst)
	}
	for _, err := range l.failed {
		if errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("a connection was refused: %v", err)
		}
	}
	served := 0
	for pid, n := range l.pids {
		if pid != before.pid && !new[pid] {
			t.Errorf("%d requests were answered by process %d, which was none of ours", n, pid)
		}
		if new[pid] {
			served++
		}
	}
	if served < upgrades/2 || l.pids[before.pid] < upgrades {
		t.Errorf("the load met %d of %d new processes, and the old one %d times: it shows nothing", served, upgrades, l.pids[before.pid])
	}
	s.mustBe(before)
	if n := s.Count(`level=ERROR .*msg="grace: `); n != upgrades || s.Count(`level=ERROR .*rolled back.* hint="`) != upgrades {
		t.Errorf("%d error lines were logged for %d upgrades; want one each", n, upgrades)
	}
	finishUpgrade(s)
}

// finishUpgrade makes a good upgrade of a server that has a long probation: the old
// process is killed in it, since the new one could do without.
func finishUpgrade(s *server) {
	s.t.Helper()
	old := s.servingPid()
	s.Signal(old, syscall.SIGUSR2)
	proctest.WaitFor(s.t, proctest.Limit, "a new pid in the PID file", func() bool { return s.filePid() != old })
	s.Signal(old, syscall.SIGKILL)
	if pid := s.WaitAlone(); s.servingPid() != pid || s.filePid() != pid {
		s.t.Errorf("process %d is left, %d answers, the PID file names %d", pid, s.servingPid(), s.filePid())
	}
}

// TestDeathInProbation: how the new process has ended is in Upgrade's error.
func TestDeathInProbation(t *testing.T) {
	for name, end := range map[string]struct {
		die    func(s *server, new int)
		status string
	}{
		"exit":    {exitBy(7), "exit status 7"},
		"exit 0":  {exitBy(0), "exit status 0"},
		"SIGKILL": {signalBy(syscall.SIGKILL), "signal: killed"},
		"SIGABRT": {signalBy(syscall.SIGABRT), "exit status 2"}, // Go prints its goroutines, and exits
	} {
		t.Run(name, func(t *testing.T) {
			s := startServer(t, "-probation", "1m")
			before := s.footprint()
			h := s.hold()
			result := s.beginUpgrade()
			s.WaitLine(`standing by"`)
			new := s.successor(before.pid)
			if pid := s.filePid(); pid != new {
				t.Fatalf("in probation process %d answers and the PID file names %d", new, pid)
			}
			end.die(s, new)
			got := s.waitResult(result)
			if !slices.Equal(got.Is, []string{"ErrRolledBack"}) || got.Pid != new || got.Status != end.status {
				t.Errorf("Upgrade returned %+v; want ErrRolledBack, pid %d, %s", got, new, end.status)
			}
			h.release()
			s.mustBe(before)
			finishUpgrade(s)
		})
	}
}

// TestDeathInDrain: a slow request keeps the drain alive, and the new process dies,
// twice; then a good upgrade succeeds, and the request is answered at last.
func TestDeathInDrain(t *testing.T) {
	for name, end := range map[string]struct {
		die    func(s *server, new int)
		status string
	}{
		"exit":    {exitBy(7), "exit status 7"},
		"SIGKILL": {signalBy(syscall.SIGKILL), "signal: killed"},
	} {
		t.Run(name, func(t *testing.T) {
			s := startServer(t, "-probation", "0", "-drain", "10m")
			before := s.footprint()
			h := s.hold()
			for range 2 {
				if got := s.upgrade(); got.Err != "" {
					t.Fatalf("Upgrade: %v", got.Err)
				}
				s.WaitLine(`upgrade done; draining"`)
				new := s.successor(before.pid)
				refused := s.startConnecting()
				end.die(s, new)
				s.WaitLine(fmt.Sprintf(`rolled back; this process accepts again" from=%d .*%s.* hint="`, before.pid, end.status))
				if pid := s.servingPid(); pid != before.pid {
					t.Fatalf("after the roll back process %d answers, want %d", pid, before.pid)
				}
				if pid := s.filePid(); pid != before.pid {
					t.Fatalf("after the roll back the PID file names %d, want %d", pid, before.pid)
				}
				refused.mustBeNone()
			}
			s.Signal(before.pid, syscall.SIGUSR2)
			s.WaitLine(`upgrade done; draining"`)
			new := s.successor(before.pid)
			if pid := s.filePid(); pid != new {
				t.Errorf("after a good upgrade process %d answers and the PID file names %d", new, pid)
			}
			h.release()
			s.WaitGone(before.pid)
			if pid := s.WaitAlone(); pid != new {
				t.Errorf("process %d is left, want %d", pid, new)
			}
			if n := s.Count(`level=ERROR`); n != 2 {
				t.Errorf("%d error lines were logged, want 2", n)
			}
		})
	}
}

func exitBy(code int) func(*server, int) {
	return func(s *server, new int) {
		s.get(fmt.Sprintf("/exit?code=%d", code)) // the answer is cut off
	}
}

func signalBy(sig syscall.Signal) func(*server, int) {
	return func(s *server, new int) { s.Signal(new, sig) }
}

// TestRefusedByHook: an upgrade that BeforeUpgrade refuses starts nothing.
func TestRefusedByHook(t *testing.T) {
	refuse := t.TempDir() + "/refuse"
	s := startServer(t, "-probation", "0", "-refuse", refuse)
	touch(t, refuse)
	before := s.footprint()
	got := s.upgrade()
	if !slices.Equal(got.Is, []string{"ErrRefused"}) || got.Pid != 0 || !strings.Contains(got.Err, "the file is there") {
		t.Errorf("Upgrade returned %+v; want ErrRefused: the file is there", got)
	}
	s.mustBe(before)
	if n := s.Count(`level=ERROR .* hint="`); n != 1 {
		t.Errorf("%d error lines were logged, want one", n)
	}
	remove(t, refuse)
	s.mustUpgrade()
}
