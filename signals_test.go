//go:build unix

package grace

import (
	"os"
	"syscall"
	"testing"
	"time"
)

// TestStopSignalsThatUpgrade: a program may let signals upgrade that stop by
// default. If none is left that stops, no other one does.
func TestStopSignalsThatUpgrade(t *testing.T) {
	if got := without(stopSignals, stopSignals); len(got) != 0 {
		t.Fatalf("%v are left", got)
	}
	h := newHouse(t, func(g *generation) error { return g.Ready() })
	h.opts = func(int) []Option { return []Option{UpgradeSignals(stopSignals...), Probation(time.Hour)} }
	g := h.first()
	if err := syscall.Kill(os.Getpid(), syscall.SIGWINCH); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if next := h.next(); next.err != nil {
		t.Fatal(next.err)
	}
	g.await(standingBy)
	g.Abort()
	receive(t, g.Done(), "Done")
}
