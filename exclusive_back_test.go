//go:build unix

package grace

import (
	"context"
	"errors"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"
)

// TestExclusiveComesBack: the new generation fails, or the old one can't release; the
// old one has the vault again, and what has waited is served.
func TestExclusiveComesBack(t *testing.T) {
	no := errors.New("no")
	for name, c := range map[string]struct {
		failing string
		want    error
		calls   []string
	}{
		"acquire fails in the new one": {"2 acquire", ErrExited, []string{"1 acquire", "1 release", "2 acquire", "1 acquire"}},
		"release fails":                {"1 release", ErrExclusive, []string{"1 acquire", "1 release", "1 acquire"}},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBank(t)
			waits, fails := make(chan struct{}, 1), make(chan struct{})
			b.v.fail = func(call string) error {
				if call != c.failing {
					return nil
				}
				waits <- struct{}{}
				<-fails
				if call == "1 release" { // it is gone all the same
					b.v.mu.Lock()
					b.v.owner = nil
					b.v.mu.Unlock()
				}
				return no
			}
			first := b.first()
			idle := b.visit(t)
			idle.ask("1")
			done := first.upgrade()
			receive(t, waits, c.failing)
			idle.send("/")
			late := b.visit(t)
			late.send("/")
			close(fails)
			err := receive(t, done, "Upgrade")
			wantErr(t, err, c.want)
			if !strings.Contains(err.Error(), "no") {
				t.Errorf("the error does not say why: %v", err)
			}
			idle.reads("1")
			late.reads("1")
			first.await(serving)
			b.v.want(t, c.calls...)
		})
	}
}

// TestExclusiveNewDiesInThePause: the new generation dies when the old one has paused for
// it, and has released nothing. The old one answers all that waited, at once.
func TestExclusiveNewDiesInThePause(t *testing.T) {
	b := newBank(t)
	serve, begun := b.main, make(chan *generation, 9)
	b.main = func(g *generation) error {
		begun <- g
		return serve(g)
	}
	first := b.first()
	receive(t, begun, "the first generation")
	p := b.pause(t, first)
	receive(t, begun, "the second generation").die()
	wantErr(t, receive(t, p.done, "Upgrade"), ErrExited)
	p.areAnswered("1")
	first.await(serving)
	close(b.go1)
	p.busy.reads("1")
	p.busy.ask("1")
	b.v.want(t, "1 acquire")
	if err := receive(t, first.upgrade(), "the next upgrade"); err != nil {
		t.Fatal(err)
	}
	p.idle.ask("3")
	p.busy.ask("3")
	b.v.want(t, "1 acquire", "1 release", "3 acquire")
}

// TestExclusiveReleaseHangs: release takes longer than it may. If it heeds its context, the
// old generation has the vault again. If it never returns, acquire is not called beside it,
// and the service ends; clients are refused, or cut off, and don't wait for ever.
func TestExclusiveReleaseHangs(t *testing.T) {
	for name, heeds := range map[string]bool{"it heeds its context": true, "it never returns": false} {
		t.Run(name, func(t *testing.T) {
			b := newBank(t, ExclusiveTimeout(time.Second))
			waits, over := make(chan struct{}), make(chan struct{})
			defer close(over)
			b.v.hang = func(ctx context.Context, call string) error {
				if call != "1 release" {
					return nil
				}
				close(waits)
				if !heeds {
					<-over
				}
				<-ctx.Done()
				b.v.mu.Lock()
				defer b.v.mu.Unlock()
				b.v.owner = nil // it is gone all the same
				return ctx.Err()
			}
			first := b.first()
			idle := b.visit(t)
			idle.ask("1")
			done := first.upgrade()
			receive(t, waits, "release")
			idle.send("/")
			late := b.visit(t)
			late.send("/")
			wantErr(t, receive(t, done, "Upgrade"), ErrExclusive)
			if heeds {
				idle.reads("1")
				late.reads("1")
				first.await(serving)
				b.v.want(t, "1 acquire", "1 release", "1 acquire")
				return
			}
			receive(t, first.Done(), "Done")
			wantErr(t, first.Run(t.Context()), ErrExclusive)
			for _, v := range []*visitor{idle, late} {
				resp, err := http.ReadResponse(v.in, nil)
				if errors.Is(err, os.ErrDeadlineExceeded) {
					t.Error("a client waits still")
				} else if err == nil && resp.StatusCode != http.StatusServiceUnavailable {
					t.Errorf("a client is answered %s, want 503", resp.Status)
				}
			}
			b.v.want(t, "1 acquire", "1 release")
		})
	}
}

// TestExclusiveRolledBack: the new generation dies, or gives up, when it has the vault
// and serves.
func TestExclusiveRolledBack(t *testing.T) {
	for name, end := range map[string]func(*generation){
		"it dies":     (*generation).die,
		"it gives up": func(g *generation) { g.Abort() },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBank(t, Probation(limit))
			first := b.first()
			b.visit(t).ask("1")
			next, done := first.toProbation()
			b.visit(t).ask("2")
			end(next)
			wantErr(t, receive(t, done, "Upgrade"), ErrRolledBack)
			b.visit(t).ask("1")
			calls := b.v.calls()
			if want := "1 acquire"; calls[len(calls)-1] != want {
				t.Errorf("the calls were %q, want that the last one is %q", calls, want)
			}
		})
	}
}

// TestExclusiveIsLost: the new generation fails, and then the old one can't have the
// vault back. That is the end of the service, and the log says so.
func TestExclusiveIsLost(t *testing.T) {
	b := newBank(t)
	lines := b.logs(1)
	n := 0
	b.v.fail = func(call string) error {
		if strings.HasSuffix(call, "acquire") {
			if n++; n > 1 {
				return errors.New("disk full")
			}
		}
		return nil
	}
	first := b.first()
	err := receive(t, first.upgrade(), "Upgrade")
	wantErr(t, err, ErrExclusive)
	receive(t, first.Done(), "Done")
	wantErr(t, first.Run(t.Context()), ErrExclusive)
	awaitLine(t, lines, `level=ERROR msg="grace: exclusive state can't be had back; this process ends, and no process serves" err="`+ErrExclusive.Error()+`: acquire: disk full`)
	b.v.want(t, "1 acquire", "1 release", "2 acquire", "1 acquire")
}
