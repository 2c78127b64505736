//go:build linux

package integration_test

import (
	"testing"
)

func TestUpgradeUnderLoad(t *testing.T) {
	s := startServer(t, "-probation", "50ms")
	l := s.startLoad(2)
	want := map[int]bool{s.Pid(): true}
	for range 3 {
		want[s.mustUpgrade()] = true
	}
	l.mustLoseNothing(t)
	for pid, n := range l.pids {
		if !want[pid] {
			t.Errorf("%d requests were answered by process %d, which is none of %v", n, pid, want)
		}
	}
}
