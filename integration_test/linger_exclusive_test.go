//go:build linux

package integration_test

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// TestLingerExclusive: a process of a version without exclusive state lingers, while later
// ones have it: it comes back from one that dies, and goes to another, under load. One that
// has it still, since the next version knows of none, does not linger.
func TestLingerExclusive(t *testing.T) {
	lock := filepath.Join(t.TempDir(), "lock")
	s := startServer(t, "-linger", "5", "-drain", "3s", "-exclusive", lock)
	first := s.stream("/websocket")
	if err := os.WriteFile(lock, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	second := s.upgradeAndLinger()
	s.WaitLine(fmt.Sprintf(`^acquired pid=%d$`, second))
	l := s.startLoad(2)
	first.mustLive()

	// It dies in its ready check, and before it was told to acquire.
	s.misbehave("exit=7@check")
	s.Signal(second, syscall.SIGUSR2)
	s.WaitLine(fmt.Sprintf(`msg="grace: upgrade failed; this process goes on serving" from=%d`, second))
	l.mustLoseNothing(t)
	// It dies when it has the lock: it comes back.
	s.misbehave("kill-after-ready=100ms")
	s.Signal(second, syscall.SIGUSR2)
	s.WaitLine(fmt.Sprintf(`msg="grace: rolled back; this process accepts again" from=%d`, second))
	s.WaitLine(fmt.Sprintf(`^released pid=%d$`, second))
	if n := s.Count(fmt.Sprintf(`^acquired pid=%d$`, second)); n != 2 {
		t.Errorf("process %d has acquired %d times, want 2", second, n)
	}
	if got := s.servingPid(); got != second {
		t.Errorf("process %d answers, want %d", got, second)
	}
	first.mustLive()

	l = s.startLoad(2)
	third := s.upgradeAndLinger()
	s.WaitLine(fmt.Sprintf(`^acquired pid=%d$`, third))
	s.WaitGone(second)
	l.mustLoseNothing(t)
	first.mustLive()

	// The next version has none: the third keeps it as long as its stream lasts, for
	// DrainTimeout at most, and the one after that gets it then.
	if err := os.Rename(lock, lock+".off"); err != nil {
		t.Fatal(err)
	}
	stream := s.stream("/websocket")
	s.Signal(third, syscall.SIGUSR2)
	s.WaitLine(fmt.Sprintf(`msg="grace: upgrade done; draining" from=%d`, third))
	if err := os.Rename(lock+".off", lock); err != nil {
		t.Fatal(err)
	}
	fourth := s.filePid()
	s.Signal(fourth, syscall.SIGUSR2)
	stream.cutOff()
	s.WaitLine(fmt.Sprintf(`msg="grace: the old process is gone" from=%d old=%d`, fourth, third))
	s.WaitLine(fmt.Sprintf(`msg="grace: upgrade done; draining" from=%d`, fourth))
	s.WaitGone(fourth)
	last := s.filePid()
	s.WaitLine(fmt.Sprintf(`^acquired pid=%d$`, last))
	if n := s.Count(fmt.Sprintf(`lingering with what is left.* from=%d`, third)); n > 0 {
		t.Error("it lingers with the exclusive state")
	}
	first.mustLive()

	s.Signal(last, syscall.SIGTERM)
	first.cutOff()
	s.WaitAllGone()
	s.WaitLine(fmt.Sprintf(`^released pid=%d$`, last))
}
