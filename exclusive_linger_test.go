//go:build unix

package grace

import (
	"errors"
	"os"
	"syscall"
	"testing"
	"time"
)

// lingersSoon lets a generation linger as soon as it drains.
func (g *generation) lingersSoon() { g.post(func() { g.m.limits.settle = 0 }) }

// lingering is how many processes linger, as g knows it.
func (g *generation) lingering() int {
	n := make(chan int, 1)
	g.post(func() { n <- len(g.m.lingerers) })
	return receive(g.house.t, n, "the loop")
}

// TestExclusiveBesideLingering: a generation without a vault lingers, while the vault comes
// back from one that fails, and goes to another.
func TestExclusiveBesideLingering(t *testing.T) {
	b := newBank(t, Linger(time.Hour, 2), IdleGrace(10*time.Millisecond))
	b.plain[1] = true
	fails := errors.New("no")
	b.v.fail = func(call string) error {
		if call == "3 acquire" {
			return fails
		}
		return nil
	}
	first := b.first()
	stream, second := b.upgradedWithAStream(t, first)
	first.await(lingering)
	until(t, "the second generation to hear of it", func() bool { return second.lingering() == 1 })
	idle := b.visit(t)
	idle.ask("2")

	wantErr(t, receive(t, second.upgrade(), "the upgrade to one that fails"), ErrExited)
	b.next()
	idle.ask("2")
	second.await(serving)
	first.await(lingering)

	if err := receive(t, second.upgrade(), "the next upgrade"); err != nil {
		t.Fatal(err)
	}
	last := b.next()
	idle.ask("4")
	receive(t, second.Done(), "Done of the second generation")
	first.await(lingering)
	if n := last.lingering(); n != 1 {
		t.Errorf("the last generation knows of %d that linger, want 1", n)
	}
	b.v.want(t, "2 acquire", "2 release", "3 acquire", "2 acquire", "2 release", "4 acquire")
	close(b.go1)
	stream.reads("1")
	receive(t, first.Done(), "Done of the first generation")
	last.askStop()
	receive(t, last.Done(), "Done of the last generation")
	if calls := b.v.calls(); len(calls) != 7 || calls[6] != "4 release" {
		t.Errorf("the calls were %q, want %q at the end, and no other", calls, "4 release")
	}
}

// TestExclusiveHeldDoesNotLinger: the new generation has no vault, so that the old one
// keeps it to its end. It does not linger, and the next upgrade waits for that end.
func TestExclusiveHeldDoesNotLinger(t *testing.T) {
	b := newBank(t, Linger(time.Hour, 2), IdleGrace(10*time.Millisecond))
	b.plain[2] = true
	first := b.first()
	stream, second := b.upgradedWithAStream(t, first)
	done := second.upgrade()
	until(t, "the next upgrade to be asked for", func() bool {
		pending := make(chan bool, 1)
		second.post(func() { pending <- second.m.has(wanted) || second.m.state == upgrading })
		return receive(t, pending, "the loop")
	})
	first.await(draining)
	b.v.want(t, "1 acquire")
	close(b.go1)
	stream.reads("1")
	if err := receive(t, done, "the next upgrade"); err != nil {
		t.Fatal(err)
	}
	b.visit(t).ask("3")
	b.v.want(t, "1 acquire", "1 release", "3 acquire")
}

// upgradedWithAStream lets first hand over while it has a request that lasts.
func (b *bank) upgradedWithAStream(t *testing.T, first *generation) (stream *visitor, second *generation) {
	t.Helper()
	first.lingersSoon()
	stream = b.visit(t)
	stream.send("/slow")
	receive(t, b.slow, "the slow request")
	if err := receive(t, first.upgrade(), "Upgrade"); err != nil {
		t.Fatal(err)
	}
	return stream, b.next()
}

// TestLingerHasAnEnd: what is left when the time of Linger is over is cut off, however long
// a drain may take.
func TestLingerHasAnEnd(t *testing.T) {
	const end = 300 * time.Millisecond
	b := newBank(t, Linger(end, 1), DrainTimeout(time.Hour), IdleGrace(10*time.Millisecond))
	b.plain[1], b.plain[2] = true, true
	told := make(eventLog, 99)
	b.only(1, told.option())
	first := b.first()
	stream, second := b.upgradedWithAStream(t, first)
	if e := told.await(t, EventLingering); e.Peer != second.Pid() || e.Generation != 1 {
		t.Errorf("lingering: %+v, want generation 1, with process %d", e, second.Pid())
	}
	if _, err := stream.in.ReadByte(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the stream was not cut off within %v: %v", limit, err)
	}
	if e := told.await(t, EventDrained); e.Cut != 1 || e.Took < end {
		t.Errorf("drained: %d cut off after %v, want 1 after at least %v", e.Cut, e.Took, end)
	}
	receive(t, first.Done(), "Done")
	b.visit(t).ask("2")
}

// TestLingererThatIsWatchedAtAHandOver: a process lingers that a supervisor takes for the
// service, and is told to stop while the second one stands by. It waits for the two newer ones,
// and neither of them waits for it, whichever has heard it.
func TestLingererThatIsWatchedAtAHandOver(t *testing.T) {
	b := newBank(t, Linger(time.Hour, 1), IdleGrace(10*time.Millisecond))
	b.plain[1], b.plain[2], b.plain[3] = true, true, true
	b.only(2, Probation(time.Hour))
	first := b.first()
	first.post(func() { first.sys.starter.supervisord = true })
	stream, second := b.upgradedWithAStream(t, first)
	first.await(lingering)
	until(t, "the second generation to hear of it", func() bool { return second.lingering() == 1 })
	last, _ := second.toProbation()
	first.happen(evStop{stopRequest{signal: syscall.SIGTERM}})
	close(b.go1)
	stream.reads("1")
	receive(t, second.Done(), "Done of the second generation")
	receive(t, last.Done(), "Done of the last generation")
	receive(t, first.Done(), "Done of the first generation")
}
