//go:build unix

package grace

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/slogtest"
	"time"
)

// A slowHandler keeps what it is given, and does for each line what the test says.
type slowHandler struct {
	slog.Handler // of the lines' text
	buf          *lockedBuffer
	before       func(slog.Record)
}

type lockedBuffer struct {
	mu sync.Mutex
	bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.Write(p)
}

func (b *lockedBuffer) lines() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Split(strings.TrimSpace(b.String()), "\n")
}

// newSlowHandler writes lines as text, without the time.
func newSlowHandler(before func(slog.Record)) *slowHandler {
	b := &lockedBuffer{}
	return &slowHandler{buf: b, before: before, Handler: slog.NewTextHandler(b, &slog.HandlerOptions{
		ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		},
	})}
}

func (h *slowHandler) Handle(ctx context.Context, r slog.Record) error {
	h.before(r)
	return h.Handler.Handle(ctx, r)
}

// blocked is a handler that takes nothing before release is closed.
func blocked(t *testing.T) (h *slowHandler, release func()) {
	c := make(chan struct{})
	release = sync.OnceFunc(func() { close(c) })
	t.Cleanup(release)
	return newSlowHandler(func(slog.Record) { <-c }), release
}

// Lines come in their order, with the time at which they were logged; what the
// queue has no room for is counted, and said when there is room again.
func TestLogLinesAreQueued(t *testing.T) {
	h, release := blocked(t)
	times := []time.Time{}
	var mu sync.Mutex
	wait := h.before
	h.before = func(r slog.Record) {
		wait(r)
		mu.Lock()
		defer mu.Unlock()
		times = append(times, r.Time)
	}
	q := &logQueue{}
	log := q.logger(slog.New(h))
	log.Info("first")
	for q.length() > 0 { // the goroutine has it in hand
		runtime.Gosched()
	}
	for i := range maxLogLines + 7 {
		log.With("a", i).Info("line")
	}
	logged := time.Now()
	release()
	q.flush()
	lines := h.buf.lines()
	if len(lines) != 1+maxLogLines+1 {
		t.Fatalf("%d lines were written, want %d", len(lines), 1+maxLogLines+1)
	}
	for i, l := range lines[1 : 1+maxLogLines] {
		if want := fmt.Sprintf("level=INFO msg=line a=%d", i); l != want {
			t.Fatalf("line %d is %q, want %q", i, l, want)
		}
	}
	if got, want := lines[len(lines)-1], `level=WARN msg="grace: log lines dropped" lines=7 `; !strings.HasPrefix(got, want) {
		t.Errorf("the last line is %q, want %q…", got, want)
	}
	for i, at := range times[:len(times)-1] {
		if at.After(logged) {
			t.Errorf("line %d has the time at which it was written, not that at which it was logged", i)
		}
	}
	log.Info("after")
	q.flush()
	if got := h.buf.lines(); got[len(got)-1] != "level=INFO msg=after" {
		t.Errorf("after that, %q is written", got[len(got)-1])
	}
}

func (q *logQueue) length() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.lines)
}

// What a handler that is stuck may cost the process is one second, once.
func TestLogFlushIsBounded(t *testing.T) {
	h, release := blocked(t)
	q := &logQueue{}
	log := q.logger(slog.New(h))
	begun := time.Now()
	for range 100 {
		log.Error("x")
		q.flush()
	}
	if took := time.Since(begun); took > 5*logPatience {
		t.Errorf("100 flushes of a log that is stuck took %v", took)
	}
	release()
	q.flush()
	for q.length() > 0 { // those that have found it stuck have not waited
		runtime.Gosched()
	}
}

// A handler that panics, or ends its goroutine, loses its line, and no other.
func TestLogHandlerPanics(t *testing.T) {
	for name, bad := range map[string]func(){
		"panic":  func() { panic("boom") },
		"Goexit": runtime.Goexit,
	} {
		t.Run(name, func(t *testing.T) {
			always := false
			h := newSlowHandler(func(r slog.Record) {
				if always || r.Message == "bad" {
					bad()
				}
			})
			q := &logQueue{}
			log := q.logger(slog.New(h))
			for _, m := range []string{"one", "bad", "two", "three"} {
				log.Info(m)
			}
			q.flush()
			got := h.buf.lines()
			got = slices.DeleteFunc(got, func(l string) bool { return strings.Contains(l, `dropped" lines=1`) })
			if len(h.buf.lines()) != 4 || !slices.Equal(got, []string{"level=INFO msg=one", "level=INFO msg=two", "level=INFO msg=three"}) {
				t.Errorf("written were %q", h.buf.lines())
			}
			always = true
			log.Info("x")
			q.flush() // ends: what says that a line was lost is not itself a line that was lost
			if len(h.buf.lines()) != 4 {
				t.Errorf("written were %q", h.buf.lines())
			}
		})
	}
}

// A program that has given no logger may change slog's default one whenever it
// likes; a nil one drops all.
func TestLogDefault(t *testing.T) {
	defer slog.SetDefault(slog.Default())
	nothing := func(slog.Record) {}
	h1, h2 := newSlowHandler(nothing), newSlowHandler(nothing)
	o, err := newOptions(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range []*slowHandler{h1, h2} {
		slog.SetDefault(slog.New(h))
		o.log.Warn("x")
	}
	o.log.Debug("not enabled")
	o.logs.flush()
	for i, h := range []*slowHandler{h1, h2} {
		if got := h.buf.lines(); !slices.Equal(got, []string{"level=WARN msg=x"}) {
			t.Errorf("default logger %d was given %q", i+1, got)
		}
	}
	if o, err = newOptions([]Option{Logger(nil)}); err != nil || o.log.Enabled(t.Context(), slog.LevelError) {
		t.Errorf("with a nil logger lines are queued, error %v", err)
	}
}

// New that fails writes what it has said before it returns, and leaves nothing.
func TestLogOfNewThatFails(t *testing.T) {
	h := newSlowHandler(func(slog.Record) { time.Sleep(20 * time.Millisecond) })
	before := runtime.NumGoroutine()
	for range 3 {
		_, err := newUpgrader(system{inheritedErr: errors.New("stale"), masterErr: ErrMaster}, []Option{Signals(), Logger(slog.New(h))})
		wantErr(t, err, ErrMaster)
	}
	if got := h.buf.lines(); len(got) != 3 || !strings.Contains(got[2], "err=stale") {
		t.Errorf("written were %q", got)
	}
	for end := time.Now().Add(limit); runtime.NumGoroutine() > before; runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("%d goroutines are left, %d were there before", runtime.NumGoroutine(), before)
		}
	}
}

func TestLogHandlerIsOneOfSlog(t *testing.T) {
	b := &lockedBuffer{}
	q := &logQueue{}
	slogtest.Run(t, func(*testing.T) slog.Handler {
		b.Reset()
		return q.logger(slog.New(slog.NewTextHandler(b, nil))).Handler()
	}, func(t *testing.T) map[string]any {
		q.flush()
		return parseText(t, b.lines()[0])
	})
}

// parseText parses what slog's TextHandler writes of slogtest's lines.
func parseText(t *testing.T, line string) map[string]any {
	top := map[string]any{}
	for _, kv := range strings.Fields(line) {
		k, v, ok := strings.Cut(kv, "=")
		if !ok {
			t.Fatalf("line %q", line)
		}
		m := top
		path := strings.Split(k, ".")
		for _, g := range path[:len(path)-1] {
			if m[g] == nil {
				m[g] = map[string]any{}
			}
			m = m[g].(map[string]any)
		}
		m[path[len(path)-1]] = v
	}
	return top
}

// A log that takes nothing, for ever, holds up neither an upgrade, nor a roll
// back, nor a stop, whatever the generation.
func TestUpgradeWithALogThatIsStuck(t *testing.T) {
	addrs := make(chan net.Addr, 9)
	house := newHouse(t, oneListener(addrs))
	probation := Probation(time.Hour)
	house.opts = func(int) []Option {
		h, _ := blocked(t)
		return []Option{Logger(slog.New(h)), probation}
	}
	g := house.first()
	addr := <-addrs
	done := g.upgrade()
	next := house.next()
	g.await(standingBy)
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
	next.Stop()
	receive(t, next.Done(), "Done of the new one")
}

// The last lines are written when Done is closed: the program exits then.
func TestLogIsWrittenBeforeDone(t *testing.T) {
	over := make(chan struct{})
	t.Cleanup(func() { close(over) })
	for range 9 { // the end waits for a second, in which a busy machine may not come to it
		var queue atomic.Pointer[logQueue]
		h := newSlowHandler(func(slog.Record) { // takes nothing before somebody waits for it
			tick := time.NewTicker(time.Millisecond)
			defer tick.Stop()
			for {
				if q := queue.Load(); q != nil && q.isWaitedFor() {
					return
				}
				select {
				case <-tick.C:
				case <-over:
					return
				}
			}
		})
		u, err := newUpgrader(system{}, []Option{Signals(), Logger(slog.New(h))})
		if err != nil {
			t.Fatal(err)
		}
		queue.Store(u.opt.logs)
		if err := u.Ready(); err != nil {
			t.Fatal(err)
		}
		u.Stop()
		receive(t, u.Done(), "Done")
		lines := h.buf.lines()
		last := lines[len(lines)-1]
		if strings.HasPrefix(last, `level=INFO msg="grace: stopped"`) {
			return
		}
		if !u.opt.logs.hasGivenUp() {
			t.Fatalf("the last of %d lines is %q when Done is closed", len(lines), last)
		}
	}
	t.Error("a second was never enough")
}

func (q *logQueue) hasGivenUp() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.stuck
}

func (q *logQueue) isWaitedFor() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.written != nil
}
