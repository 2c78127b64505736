package grace

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/sdnotify"
)

// A stop that systemd sends before it has read which process is the main one now is one of
// the service, though the one that gets it has finished long after it handed over.
func TestStopBeforeSystemdKnowsTheMainProcess(t *testing.T) {
	systemd := newNotifySocket(t)
	h := newHouse(t, func(g *generation) error { return g.Ready() })
	h.opts = func(int) []Option { return []Option{Probation(0)} }
	h.begin(system{manager: &sdnotify.Manager{Socket: systemd.path}})
	old := h.next()
	if err := receive(t, old.upgrade(), "Upgrade"); err != nil {
		t.Fatal(err)
	}
	next := h.next()
	for !strings.HasPrefix(systemd.next(t), "MAINPID=") { // BARRIER=1 is not read
	}
	old.happen(evStop{stopRequest{signal: syscall.SIGTERM, at: time.Now().Add(2 * passOnFor)}})
	receive(t, next.Done(), "Done of the new process")
	systemd.next(t)
	receive(t, old.Done(), "Done of the old process")
}

// A process whose last stream ends as soon as it lingers does not end before systemd knows
// the new one.
func TestLingererTellsSystemdBeforeItEnds(t *testing.T) {
	systemd := newNotifySocket(t)
	b := newBank(t, Linger(time.Hour, 1), IdleGrace(10*time.Millisecond))
	b.plain[1], b.plain[2] = true, true
	told := make(eventLog, 99)
	b.only(1, told.option())
	b.begin(system{manager: &sdnotify.Manager{Socket: systemd.path}})
	first := b.next()
	stream, _ := b.upgradedWithAStream(t, first)
	told.await(t, EventLingering)
	close(b.go1)
	stream.reads("1")
	for !strings.HasPrefix(systemd.next(t), "MAINPID=") {
	}
	systemd.next(t)
	receive(t, first.Done(), "Done")
}
