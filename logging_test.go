//go:build unix

package grace

import (
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/julofinance/grace/v3/internal/testing/logtest"
)

// A program that gives no logger may change slog's default logger at any time. A nil
// logger drops all lines.
func TestLogDefault(t *testing.T) {
	defer slog.SetDefault(slog.Default())
	nothing := func(slog.Record) {}
	h1, h2 := logtest.New(nothing), logtest.New(nothing)
	o, err := newOptions(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range []*logtest.Handler{h1, h2} {
		slog.SetDefault(slog.New(h))
		o.log.Warn("x")
	}
	o.log.Debug("not enabled")
	o.flushLog()
	for i, h := range []*logtest.Handler{h1, h2} {
		if got := h.Lines(); !slices.Equal(got, []string{"level=WARN msg=x"}) {
			t.Errorf("default logger %d was given %q", i+1, got)
		}
	}
	if o, err = newOptions([]Option{Logger(nil)}); err != nil || o.log.Enabled(t.Context(), slog.LevelError) {
		t.Errorf("with a nil logger lines are queued, error %v", err)
	}
}

// When New fails, its log lines are written before it returns, and no goroutine is left.
func TestLogOfNewThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // which fails if a goroutine is left
		take := make(chan struct{})
		h := logtest.New(func(slog.Record) { <-take })
		done := make(chan error, 1)
		go func() {
			_, err := newUpgrader(system{inheritedErr: errors.New("stale"), masterErr: ErrMaster}, []Option{NoSignals(), Logger(slog.New(h))})
			done <- err
		}()
		synctest.Wait()
		select {
		case <-done:
			t.Error("New has returned before its line was taken")
		default:
		}
		close(take)
		wantErr(t, <-done, ErrMaster)
		if got := h.Lines(); len(got) != 1 || !strings.Contains(got[0], "err=stale") {
			t.Errorf("written were %q", got)
		}
	})
}

// A log that never takes a line holds up neither an upgrade, nor a roll back, nor a
// stop, in no generation.
func TestUpgradeWithALogThatIsStuck(t *testing.T) {
	addrs := make(chan net.Addr, 9)
	house := newHouse(t, oneListener(addrs))
	probation := Probation(time.Hour)
	house.opts = func(int) []Option {
		h, _ := logtest.Blocked(t)
		return []Option{Logger(slog.New(h)), probation}
	}
	g := house.first()
	addr := <-addrs
	next, done := g.toProbation()
	next.die()
	wantErr(t, receive(t, done, "Upgrade that is rolled back"), ErrRolledBack)
	if got := ask(t, addr); got != "1" {
		t.Errorf("generation %s answers after the roll back, want 1", got)
	}
	probation = Probation(0)
	g.post(func() { g.opt.probation, g.m.limits.probation = 0, 0 })
	done = g.upgrade()
	next = house.next()
	if err := receive(t, done, "Upgrade"); err != nil {
		t.Fatal(err)
	}
	receive(t, g.Done(), "Done of the old one")
	if got := ask(t, addr); got != "3" {
		t.Errorf("generation %s answers after the upgrade, want 3", got)
	}
	next.askStop()
	receive(t, next.Done(), "Done of the new one")
}

// The last lines are written when Done is closed: the program exits then.
func TestLogIsWrittenBeforeDone(t *testing.T) {
	for range 9 { // the end waits for one second, which may not be enough on a busy machine
		flushes, over := make(chan struct{}), make(chan struct{})
		h := logtest.New(func(slog.Record) { // takes nothing before the end waits for it
			select {
			case <-flushes:
			case <-over:
			}
		})
		u, err := newUpgrader(system{}, []Option{NoSignals(), Logger(slog.New(h))})
		if err != nil {
			t.Fatal(err)
		}
		flush := u.opt.flushLog
		inTime := true
		u.opt.flushLog = func() bool {
			close(flushes)
			inTime = flush()
			return inTime
		}
		if err := u.Ready(); err != nil {
			t.Fatal(err)
		}
		u.askStop()
		receive(t, u.Done(), "Done")
		lines := h.Lines()
		close(over)
		if last := lines[len(lines)-1]; strings.HasPrefix(last, `level=INFO msg="grace: stopped"`) {
			return
		} else if inTime {
			t.Fatalf("the last of %d lines is %q when Done is closed", len(lines), last)
		}
	}
	t.Error("one second was never enough")
}

// What waits for the PID file's lock, as grace-follow does, may take the log along when it
// ends: that this process has stopped is written before.
func TestLogIsWrittenBeforeTheLockIsFree(t *testing.T) {
	path := filepath.Join(t.TempDir(), "app.pid")
	h := logtest.New(func(slog.Record) {})
	u, err := newUpgrader(system{}, []Option{NoSignals(), PIDFile(path), Logger(slog.New(h))})
	if err != nil {
		t.Fatal(err)
	}
	flush := u.opt.flushLog
	var there error
	var lines []string
	u.opt.flushLog = func() bool {
		done := flush()
		if lines == nil {
			_, there = os.Lstat(path)
			lines = h.Lines()
		}
		return done
	}
	if err := u.Ready(); err != nil {
		t.Fatal(err)
	}
	u.askStop()
	receive(t, u.Done(), "Done")
	if there != nil {
		t.Errorf("when the log is written: %v", there)
	}
	if last := lines[len(lines)-1]; !strings.HasPrefix(last, `level=INFO msg="grace: stopped"`) {
		t.Errorf("the last line then is %q", last)
	}
}
