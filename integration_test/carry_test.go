//go:build linux

package integration_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/julofinance/grace/v3/internal/proctest"
)

// peakKB is the most memory that a process has had.
func peakKB(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "VmHWM:")
	return atoi(t, strings.Fields(rest)[0])
}

// TestCarryState: a counter goes through five upgrades, with 64 MB of other state. The third
// new version can't read it, and the old one serves on with it. No process needs more memory
// for that than it has at its start, and 16 MB.
func TestCarryState(t *testing.T) {
	const size, room = 64 << 20, 16 << 10
	// The race detector has memory of its own, which is not what is measured.
	s := startServerAs(t, proctest.Command{Path: proctest.Build(t, serverPackage, "-race=false"), Args: []string{"-carry", fmt.Sprint(size), "-probation", "0s"}})
	counted := 0
	count := func() {
		t.Helper()
		for range 3 {
			counted++
			if got := s.mustGet("/count"); got != fmt.Sprint(counted) {
				t.Fatalf("the counter says %s, want %d", got, counted)
			}
		}
	}
	pid := s.servingPid()
	start := peakKB(t, pid)
	for round := 1; round <= 5; round++ {
		count()
		if round == 3 {
			s.misbehave("unreadable")
			if got := s.upgrade(); !slices.Equal(got.Is, []string{"ErrExited"}) || !strings.Contains(got.Err, "restore: saved by a later version") {
				t.Fatalf("Upgrade returned %+v; want ErrExited, and why", got)
			}
			if got := s.servingPid(); got != pid {
				t.Fatalf("process %d answers, want %d", got, pid)
			}
			count()
			continue
		}
		h := s.hold() // the old process lives until its memory was looked at
		if got := s.upgrade(); got.Err != "" {
			t.Fatalf("Upgrade returned %+v", got)
		}
		next := s.successor(pid)
		s.WaitLine(fmt.Sprintf(`msg="grace: state was saved for the new process" from=%d new=%d bytes=%d `, pid, next, size+8))
		s.WaitLine(fmt.Sprintf(`msg="grace: state restored" from=%d old=%d bytes=%d `, next, pid, size+8))
		for _, p := range []int{pid, next} {
			if got := peakKB(t, p); got > start+room {
				t.Errorf("round %d: process %d has had %d kB, want %d at most", round, p, got, start+room)
			}
		}
		t.Logf("round %d: %d kB at the start, %d kB after it has saved, %d kB after the next one has restored", round, start, peakKB(t, pid), peakKB(t, next))
		h.release()
		s.WaitGone(pid)
		pid = next
	}
	count()
}

// TestCarryStateOldDies: the old process is killed while it saves. The new one sees that it
// has not all of it, and goes on without.
func TestCarryStateOldDies(t *testing.T) {
	s := startServer(t, "-carry", fmt.Sprint(64<<20), "-carryless")
	s.mustGet("/count")
	old := s.servingPid()
	s.misbehave("pause@restore")
	s.Signal(old, syscall.SIGUSR2)
	next := atoi(t, s.WaitLine(`^paused at restore pid=(\d+)$`)[1])
	s.Signal(old, syscall.SIGKILL)
	s.WaitGone(old)
	s.Signal(next, syscall.SIGUSR1)
	s.WaitLine(fmt.Sprintf(`^goes on without state pid=%d: after \d+ bytes: the old process's state was not carried over: .* pid %d, has died`, next, old))
	s.WaitLine(fmt.Sprintf(`msg="grace: the old process's state was not read whole; this process goes on" from=%d`, next))
	s.WaitLine(fmt.Sprintf(`msg="grace: serving" from=%d`, next))
	if pid := s.servingPid(); pid != next {
		t.Errorf("process %d answers, want %d", pid, next)
	}
	if got := s.mustGet("/counted"); got != "0" {
		t.Errorf("the counter says %s after half a state, want 0", got)
	}
	proctest.WaitFor(t, proctest.Limit, "the PID file to name the new process", func() bool { return s.filePid() == next })
}
