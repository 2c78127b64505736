//go:build unix

package grace

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/serve"
	"github.com/julofinance/grace/v3/internal/testing/logtest"
)

// An eventLog is what one process was told.
type eventLog chan Event

func (l eventLog) option() Option { return Events(func(e Event) { l <- e }) }

// kinds returns what has been told by now.
func (l eventLog) kinds() (told []string) {
	for {
		select {
		case e := <-l:
			told = append(told, e.Kind.String())
		default:
			return told
		}
	}
}

// await returns the next event of a kind.
func (l eventLog) await(t *testing.T, kind EventKind) Event {
	t.Helper()
	for {
		if e := receive(t, l, kind.String()); e.Kind == kind {
			return e
		}
	}
}

// TestEvents: each process is told its steps, in order, before Done is closed: an upgrade
// that is rolled back in probation, one in the drain, one that succeeds, and a stop.
func TestEvents(t *testing.T) {
	told := []eventLog{make(eventLog, 99), make(eventLog, 99), make(eventLog, 99), make(eventLog, 99)}
	h := newHouse(t, func(g *generation) error { return g.Ready() })
	probation := time.Hour
	h.opts = func(n int) []Option { return []Option{told[n-1].option(), Probation(probation)} }
	g := h.first()
	next, done := g.toProbation()
	if e := told[0].await(t, EventHandedOver); e.Peer != next.Pid() || e.Pid == 0 || e.Generation != 1 || e.Time.IsZero() {
		t.Errorf("handed over: %+v", e)
	}
	next.die()
	wantErr(t, receive(t, done, "Upgrade"), ErrRolledBack)
	var failure *UpgradeError
	if e := told[0].await(t, EventRolledBack); e.Peer != next.Pid() || !errors.As(e.Err, &failure) {
		t.Errorf("rolled back: %+v", e)
	}

	g.post(func() { g.m.limits.probation = 0 })
	slow := &slowDrainer{begun: make(chan *serve.Drain, 9), notice: make(chan struct{}, 9)}
	next = g.toDrain(slow, slow.begun)
	next.die()
	slow.notice <- struct{}{}
	told[0].await(t, EventRolledBack)

	next = g.toDrain(&slowDrainer{begun: slow.begun, notice: slow.notice}, slow.begun)
	slow.notice <- struct{}{}
	slow.notice <- struct{}{}
	receive(t, g.Done(), "Done of the old process")
	if got, want := told[0].kinds(), []string{"asked", "started", "handed over", "draining", "drained", "stopped"}; !slices.Equal(got, want) {
		t.Errorf("the old process was told %q, want %q", got, want)
	}
	if e := told[3].await(t, EventAlone); e.Peer == 0 || e.Generation != 2 {
		t.Errorf("alone: %+v", e)
	}
	next.askStop()
	receive(t, next.Done(), "Done of the new process")
	if got, want := told[3].kinds(), []string{"draining", "drained", "stopped"}; !slices.Equal(got, want) {
		t.Errorf("the new process was told %q, want %q", got, want)
	}
	for i, want := range []string{"ready", "ready"} { // the two that died
		if got := told[1+i].kinds(); !slices.Equal(got, []string{want}) {
			t.Errorf("process %d was told %q, want %q", 2+i, got, want)
		}
	}
}

// TestEventsOfAnUpgradeThatIsNot: it is refused, or the new process is never ready.
func TestEventsOfAnUpgradeThatIsNot(t *testing.T) {
	told, others := make(eventLog, 99), make(eventLog, 99)
	refuse := true
	h := newHouse(t, func(g *generation) error { return g.Ready() })
	no := errors.New("no")
	h.opts = func(n int) []Option {
		if n > 1 {
			return []Option{others.option(), ReadyCheck(func(context.Context) error { return no })}
		}
		return []Option{told.option(), BeforeUpgrade(func(context.Context) error {
			if refuse {
				return no
			}
			return nil
		})}
	}
	g := h.first()
	wantErr(t, receive(t, g.upgrade(), "Upgrade"), ErrRefused)
	if e := told.await(t, EventRefused); !errors.Is(e.Err, no) {
		t.Errorf("refused: %+v", e)
	}
	refuse = false
	wantErr(t, receive(t, g.upgrade(), "Upgrade"), ErrExited)
	if e := told.await(t, EventFailed); !errors.Is(e.Err, ErrExited) || e.Peer == 0 {
		t.Errorf("failed: %+v", e)
	}
	if e := receive(t, others, "an event of the new process"); e.Kind != EventFailed || !strings.Contains(e.Err.Error(), "no") {
		t.Errorf("the new process was told: %+v", e)
	}
	g.askStop()
	receive(t, g.Done(), "Done")
}

// TestEventOfAnUpgradeThatWaits: it waits for another one, and this process stops before its
// turn.
func TestEventOfAnUpgradeThatWaits(t *testing.T) {
	told, over := make(eventLog, 99), make(chan struct{})
	h := newHouse(t, func(g *generation) error {
		if g.n > 1 {
			<-over
		}
		return g.Ready()
	})
	h.opts = func(n int) []Option { return []Option{told.option()} }
	g := h.first()
	first := g.upgrade()
	told.await(t, EventStarted)
	second := g.upgrade()
	told.await(t, EventAsked)
	g.askStop()
	if e := told.await(t, EventRefused); !errors.Is(e.Err, ErrStopped) {
		t.Errorf("refused: %+v", e)
	}
	close(over)
	for _, done := range []<-chan error{first, second} {
		wantErr(t, receive(t, done, "Upgrade"), ErrStopped)
	}
	receive(t, g.Done(), "Done")
}

// TestEventsThatHang: a function that does not return holds up neither the upgrade nor,
// for longer than it may, the end.
func TestEventsThatHang(t *testing.T) {
	hang := make(chan struct{})
	defer close(hang)
	h := newHouse(t, func(g *generation) error { return g.Ready() })
	h.opts = func(n int) []Option {
		if n > 1 {
			return []Option{Probation(0)}
		}
		return []Option{Probation(0), Events(func(Event) { <-hang })}
	}
	g := h.first()
	if err := receive(t, g.upgrade(), "Upgrade"); err != nil {
		t.Fatal(err)
	}
	next := h.next()
	receive(t, g.Done(), "Done of the old process")
	next.askStop()
	receive(t, next.Done(), "Done of the new process")
}

// TestSickEvent: a new process that does not answer is said to be sick before it is killed.
func TestSickEvent(t *testing.T) {
	w := newSim(false, false, false)
	w.to("ready upgrade launch line claims accept probation silence")
	sick := slices.Index(w.did, "say sick")
	if kill := slices.Index(w.did, "kill"); sick < 0 || kill < sick {
		t.Errorf("effects %q, want that the child is sick, and then the kill", w.did)
	}
}

// TestEventKinds: each has a name.
func TestEventKinds(t *testing.T) {
	seen := map[string]bool{}
	for k := EventReady; k <= EventStopped; k++ {
		seen[k.String()] = true
	}
	if len(seen) != int(EventStopped) || seen["unknown"] || seen[""] {
		t.Errorf("the kinds are called %v", seen)
	}
	if got := EventKind(0).String() + EventKind(99).String(); got != "unknownunknown" {
		t.Errorf("kinds that are none: %q", got)
	}
}

// TestRollBackIsToldBeforeDone: the program ends this process when an upgrade was rolled
// back just now, and what the upgrade had taken is not back yet.
func TestRollBackIsToldBeforeDone(t *testing.T) {
	told := make(eventLog, 99)
	u, _ := newSolo(t, told.option())
	if err := u.Ready(); err != nil {
		t.Fatal(err)
	}
	u.restores.Add(1) // it takes its time
	u.askStop()
	receive(t, u.ctx.Done(), "the stop")
	told.await(t, EventDrained)
	u.post(func() {
		performer{u}.say(noticeRolledBack, &UpgradeError{Reason: ErrRolledBack})
		u.restores.Done()
	})
	receive(t, u.Done(), "Done")
	if got, want := told.kinds(), []string{"rolled back", "stopped"}; !slices.Equal(got, want) {
		t.Errorf("when Done is closed the program was told %q, want %q", got, want)
	}
}

// TestDoneWaitsForEvents: the function has returned from the last one when Done is closed.
func TestDoneWaitsForEvents(t *testing.T) {
	stopped, goOn := make(chan struct{}), make(chan struct{})
	u, _ := newSolo(t, Events(func(e Event) {
		if e.Kind == EventStopped {
			close(stopped)
			<-goOn
		}
	}))
	u.askStop()
	receive(t, stopped, "the last event")
	select {
	case <-u.Done():
		t.Error("Done is closed before the function has returned")
	case <-time.After(50 * time.Millisecond): // more than nothing: it is to be waiting
	}
	close(goOn)
	receive(t, u.Done(), "Done")
}

// TestLinesAndEventsAgree: what both say is the same, to the nanosecond.
func TestLinesAndEventsAgree(t *testing.T) {
	told, lines := make(eventLog, 99), logtest.New(func(slog.Record) {})
	h := newHouse(t, func(g *generation) error { return g.Ready() })
	h.opts = func(n int) []Option {
		if n > 1 {
			return nil
		}
		return []Option{Probation(0), told.option(), Logger(slog.New(lines))}
	}
	next := accepted(t, h.first())
	for kind, line := range map[EventKind]func(e Event) string{
		EventHandedOver: func(e Event) string {
			return fmt.Sprintf(`standing by" new=%d took=%v probation=0s`, e.Peer, e.Took)
		},
		EventDrained: func(e Event) string {
			return fmt.Sprintf(`drained" took=%v moved=%d finished=%d waited=%d cut=%d`, e.Took, e.Moved, e.Finished, e.Waited, e.Cut)
		},
	} {
		var e Event
		for range len(told) { // all are there, since Done is closed
			next := <-told
			if told <- next; next.Kind == kind {
				e = next
			}
		}
		if e.Took <= 0 {
			t.Errorf("%v: took %v, want more", kind, e.Took)
		}
		if log := lines.Buffer.String(); !strings.Contains(log, line(e)) {
			t.Errorf("%v: the log says\n%s\nwant %s", kind, log, line(e))
		}
	}
	next.stop(t)
}
