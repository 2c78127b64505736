//go:build unix

package grace

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"testing"
	"time"
)

// TestExclusive: the vault changes hands when the old generation has finished what it has
// begun, and what comes meanwhile waits. The connection stays. The program is told.
func TestExclusive(t *testing.T) {
	b := newBank(t)
	told := make(eventLog, 99)
	b.only(1, told.option())
	first := b.first()
	p := b.pause(t, first)
	if got := first.State(); got != StatePaused {
		t.Errorf("the state is %v, want %v", got, StatePaused)
	}
	paused := told.await(t, EventPaused)
	b.v.want(t, "1 acquire")
	close(b.go1)
	p.busy.reads("1")
	p.areAnswered("2")
	if err := receive(t, p.done, "Upgrade"); err != nil {
		t.Error(err)
	}
	receive(t, first.Done(), "Done")
	next := b.next()
	if paused.Peer != next.Pid() || paused.Generation != 1 {
		t.Errorf("paused: %+v, want generation 1, for process %d", paused, next.Pid())
	}
	if got, want := told.kinds(), []string{"handed over", "draining", "drained", "stopped"}; !slices.Equal(got, want) {
		t.Errorf("after the pause the program was told %q, want %q", got, want)
	}
	p.busy.ask("2")
	next.askStop()
	receive(t, next.Done(), "Done of the second generation")
	b.v.want(t, "1 acquire", "1 release", "2 acquire", "2 release")
}

// TestExclusiveNotFinished: a request takes longer than the pause may last. The log says
// which.
func TestExclusiveNotFinished(t *testing.T) {
	t.Run("the upgrade is refused", func(t *testing.T) {
		b := newBank(t)
		lines := b.logs(1)
		p := b.pause(t, b.first())
		p.endIt()
		wantErr(t, receive(t, p.done, "Upgrade"), ErrExclusive)
		awaitLine(t, lines, fmt.Sprintf(`level=WARN msg="grace: not finished in time, so that exclusive state is kept, and the upgrade given up" count=1 connections="%s (in a request)"`, p.busy.LocalAddr()))
		p.areAnswered("1")
		close(b.go1)
		p.busy.reads("1")
		p.busy.ask("1")
		p.first.await(serving)
		b.v.want(t, "1 acquire")
	})
	t.Run("it is cut off", func(t *testing.T) {
		b := newBank(t, CutAtRelease(true))
		lines := b.logs(1)
		p := b.pause(t, b.first())
		p.endIt()
		if err := receive(t, p.done, "Upgrade"); err != nil {
			t.Fatal(err)
		}
		p.areAnswered("2")
		if _, err := p.busy.in.ReadByte(); err == nil {
			t.Error("the slow request has an answer")
		}
		receive(t, p.first.Done(), "Done")
		awaitLine(t, lines, fmt.Sprintf(`level=WARN msg="grace: not finished in time, and cut off, so that exclusive state can be released" count=1 connections="%s (in a request)"`, p.busy.LocalAddr()))
		b.v.want(t, "1 acquire", "1 release", "2 acquire")
	})
	t.Run("by ExclusiveTimeout", func(t *testing.T) {
		b := newBank(t, ExclusiveTimeout(time.Second))
		first, busy := b.first(), b.visit(t)
		busy.send("/slow")
		receive(t, b.slow, "the slow request")
		wantErr(t, receive(t, first.upgrade(), "Upgrade"), ErrExclusive)
		close(b.go1)
		busy.reads("1")
	})
}

// TestExclusiveVersions: a version without a vault, and one with it, in either order.
func TestExclusiveVersions(t *testing.T) {
	t.Run("the old one has none", func(t *testing.T) {
		b := newBank(t)
		b.plain[1] = true
		first := b.first()
		if err := receive(t, first.upgrade(), "Upgrade"); err != nil {
			t.Fatal(err)
		}
		b.visit(t).ask("2")
		receive(t, first.Done(), "Done")
		b.v.want(t, "2 acquire")
	})
	t.Run("the new one has none", func(t *testing.T) {
		b := newBank(t)
		b.plain[2] = true
		first := b.first()
		if err := receive(t, first.upgrade(), "Upgrade"); err != nil {
			t.Fatal(err)
		}
		receive(t, first.Done(), "Done")
		b.visit(t).ask("2")
		b.v.want(t, "1 acquire", "1 release")
	})
}

// TestExclusiveNeverReady: a first process can't acquire, or is told to stop meanwhile.
func TestExclusiveNeverReady(t *testing.T) {
	calls := 0
	u, _ := newSolo(t, Exclusive(func(context.Context) error { return errors.New("locked") }, func(context.Context) error { calls++; return nil }))
	err := u.Ready()
	wantErr(t, err, ErrExclusive)
	u.askStop()
	receive(t, u.Done(), "Done")
	if calls > 0 {
		t.Error("release was called, and acquire has failed")
	}

	began := make(chan struct{})
	u, _ = newSolo(t, Exclusive(func(ctx context.Context) error {
		close(began)
		<-ctx.Done()
		return nil // it has it all the same
	}, func(context.Context) error { calls++; return nil }))
	ready := make(chan error, 1)
	go func() { ready <- u.Ready() }()
	receive(t, began, "acquire")
	u.askStop()
	wantErr(t, receive(t, ready, "Ready"), ErrStopped)
	receive(t, u.Done(), "Done")
	if calls != 1 {
		t.Errorf("release was called %d times, want once", calls)
	}
}

// TestExclusiveStopped: the service is told to stop while the vault changes hands.
func TestExclusiveStopped(t *testing.T) {
	for name, c := range map[string]struct {
		at     string // the call that runs when the stop comes
		answer string // which generation serves what has waited
		calls  []string
	}{
		"before go": {"1 release", "1", []string{"1 acquire", "1 release", "1 acquire", "1 release"}},
		"after go":  {"2 acquire", "2", []string{"1 acquire", "1 release", "2 acquire", "2 release"}},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBank(t)
			waits, goOn := make(chan struct{}, 9), make(chan struct{})
			b.v.fail = func(call string) error {
				if call == c.at {
					waits <- struct{}{}
					<-goOn
				}
				return nil
			}
			first := b.first()
			idle := b.visit(t)
			idle.ask("1")
			first.upgrade()
			receive(t, waits, c.at)
			idle.send("/")
			late := b.visit(t)
			late.send("/")
			first.askStop()
			first.State() // the loop has seen it
			close(goOn)
			idle.reads(c.answer)
			late.reads(c.answer)
			receive(t, first.Done(), "Done")
			next := b.next()
			if next.err == nil {
				receive(t, next.Done(), "Done of the second generation")
			}
			b.v.want(t, c.calls...)
		})
	}
}

// TestExclusiveUnasked: the new generation does not ask for a socket that the old one has. A
// client that waits there in the pause is answered by neither with what the vault has, and
// does not wait for ever.
func TestExclusiveUnasked(t *testing.T) {
	b := newBank(t)
	main := b.main
	asked := make(chan net.Addr, 1)
	b.main = func(g *generation) error {
		if g.n == 1 {
			ln, err := g.Listen("tcp", "localhost:0")
			if err != nil {
				return err
			}
			asked <- ln.Addr()
			execute, _ := g.HTTP(&http.Server{Handler: b.handler(g)}, ln)
			go execute()
		}
		return main(g)
	}
	first := b.first()
	other := *b
	other.addr = receive(t, asked, "the other socket")
	before := other.visit(t)
	before.ask("1")
	before.Close()
	p := b.pause(t, first)
	waits := other.visit(t)
	waits.send("/")
	close(b.go1)
	p.busy.reads("1")
	p.areAnswered("2")
	resp, err := http.ReadResponse(waits.in, nil)
	if err != nil || resp.StatusCode != http.StatusServiceUnavailable || !resp.Close {
		t.Errorf("the client on the other socket has %v, %v; want 503 and Connection: close", resp, err)
	}
	if err := receive(t, p.done, "Upgrade"); err != nil {
		t.Error(err)
	}
	b.v.want(t, "1 acquire", "1 release", "2 acquire")
}
