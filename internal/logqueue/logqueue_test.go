package logqueue

import (
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/slogtest"
	"time"

	"github.com/julofinance/grace/v3/internal/testing/logtest"
	"github.com/julofinance/grace/v3/internal/testing/wait"
)

// Lines are written in their order, with the time at which they were logged. Lines that
// the queue has no room for are counted, and the number is logged when there is room again.
func TestLinesAreQueued(t *testing.T) {
	h, release := logtest.Blocked(t)
	times := []time.Time{}
	var mu sync.Mutex
	held := h.Before
	h.Before = func(r slog.Record) {
		held(r)
		mu.Lock()
		defer mu.Unlock()
		times = append(times, r.Time)
	}
	q := &Queue{}
	logger := q.Logger(slog.New(h))
	logger.Info("first")
	wait.Until(t, "the goroutine to take the first line", func() bool { return q.length() == 0 })
	for i := range maxLines + 7 {
		logger.With("a", i).Info("line")
	}
	logged := time.Now()
	release()
	q.Flush()
	lines := h.Lines()
	if len(lines) != 1+maxLines+1 {
		t.Fatalf("%d lines were written, want %d", len(lines), 1+maxLines+1)
	}
	for i, l := range lines[1 : 1+maxLines] {
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
	logger.Info("after")
	q.Flush()
	if got := h.Lines(); got[len(got)-1] != "level=INFO msg=after" {
		t.Errorf("after that, %q is written", got[len(got)-1])
	}
}

func (q *Queue) length() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.lines)
}

// A handler that is stuck costs the process one second, once.
func TestFlushIsBounded(t *testing.T) {
	h, release := logtest.Blocked(t)
	q := &Queue{}
	logger := q.Logger(slog.New(h))
	begun := time.Now()
	for range 100 {
		logger.Error("x")
		if q.Flush() {
			t.Fatal("Flush reports that all was written, while the handler takes nothing")
		}
	}
	if took := time.Since(begun); took > 5*flushLimit {
		t.Errorf("100 flushes of a log that is stuck took %v", took)
	}
	release()
	q.Flush()
	wait.Until(t, "the queue to be empty", q.Flush) // while the queue is stuck, Flush does not wait
}

// When the handler panics, or ends its goroutine, that line is lost, and no other.
func TestHandlerThatPanics(t *testing.T) {
	for name, bad := range map[string]func(){
		"panic":  func() { panic("boom") },
		"Goexit": runtime.Goexit,
	} {
		t.Run(name, func(t *testing.T) {
			always := false
			h := logtest.New(func(r slog.Record) {
				if always || r.Message == "bad" {
					bad()
				}
			})
			q := &Queue{}
			logger := q.Logger(slog.New(h))
			for _, m := range []string{"one", "bad", "two", "three"} {
				logger.Info(m)
			}
			q.Flush()
			got := h.Lines()
			got = slices.DeleteFunc(got, func(l string) bool { return strings.Contains(l, `dropped" lines=1`) })
			if len(h.Lines()) != 4 || !slices.Equal(got, []string{"level=INFO msg=one", "level=INFO msg=two", "level=INFO msg=three"}) {
				t.Errorf("written were %q", h.Lines())
			}
			always = true
			logger.Info("x")
			q.Flush() // returns: a lost note about lost lines is not counted as a lost line
			if len(h.Lines()) != 4 {
				t.Errorf("written were %q", h.Lines())
			}
		})
	}
}

func TestHandlerKeepsSlogsRules(t *testing.T) {
	b := &logtest.Buffer{}
	q := &Queue{}
	slogtest.Run(t, func(*testing.T) slog.Handler {
		b.Reset()
		return q.Logger(slog.New(slog.NewTextHandler(b, nil))).Handler()
	}, func(t *testing.T) map[string]any {
		q.Flush()
		return parseText(t, b.Lines()[0])
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
