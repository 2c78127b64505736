package grace

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// Log lines are queued, and one goroutine hands them to the program's handler:
// standard error may be a pipe that nobody reads, and a process that waits for
// it could neither be upgraded nor stopped. They keep their order and the time
// at which they were logged. What the queue has no room for is counted.

const (
	maxLogLines = 1024
	// logPatience is how long the end of the process may wait for what is
	// queued, all in all.
	logPatience = time.Second
)

// A logHandler queues the lines for a handler of the program's.
type logHandler struct {
	q *logQueue
	// to gives the program's handler. It must not block.
	to func() slog.Handler
	// with adds the attributes and groups of this one to it; nil: there are none.
	with func(slog.Handler) slog.Handler
}

// Enabled is left to the goroutine that writes: the program's may block, too.
func (h *logHandler) Enabled(context.Context, slog.Level) bool { return true }

func (h *logHandler) Handle(ctx context.Context, r slog.Record) error {
	h.q.add(logLine{ctx: ctx, to: h.to(), with: h.with, record: r.Clone()})
	return nil
}

func (h *logHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return h.and(func(to slog.Handler) slog.Handler { return to.WithAttrs(attrs) })
}

func (h *logHandler) WithGroup(name string) slog.Handler {
	return h.and(func(to slog.Handler) slog.Handler { return to.WithGroup(name) })
}

func (h *logHandler) and(f func(slog.Handler) slog.Handler) slog.Handler {
	with := f
	if before := h.with; before != nil {
		with = func(to slog.Handler) slog.Handler { return f(before(to)) }
	}
	return &logHandler{q: h.q, to: h.to, with: with}
}

type logLine struct {
	ctx    context.Context
	to     slog.Handler
	with   func(slog.Handler) slog.Handler
	record slog.Record
	note   bool // that lines were dropped
}

// A logQueue holds the lines that are not written yet. Its goroutine lives as
// long as there are some. The zero value is ready to use.
type logQueue struct {
	mu      sync.Mutex
	lines   []logLine
	dropped int
	lost    slog.Handler // the handler of the last line that was dropped
	writing bool
	written chan struct{} // closed when nothing is left; nil: nobody waits for it
	stuck   bool          // nothing was taken since a flush has given up
}

// logger gives the logger of the library, which writes to the program's: l, or
// what slog.Default is at each line if l is nil.
func (q *logQueue) logger(l *slog.Logger) *slog.Logger {
	to := func() slog.Handler { return slog.Default().Handler() }
	if l != nil {
		h := l.Handler()
		if h == slog.DiscardHandler {
			return l
		}
		to = func() slog.Handler { return h }
	}
	return slog.New(&logHandler{q: q, to: to})
}

func (q *logQueue) add(l logLine) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.lines) >= maxLogLines {
		q.dropped++
		q.lost = l.to
		return
	}
	q.lines = append(q.lines, l)
	if !q.writing {
		q.writing = true
		go q.run()
	}
}

func (q *logQueue) run() {
	done := false
	defer func() {
		if !done { // the handler has ended the goroutine, as a test's may
			go q.run()
		}
	}()
	for {
		l, ok := q.next()
		if !ok {
			done = true
			return
		}
		q.write(l)
	}
}

// next gives the line to be written now, if there is one. The one before it was
// taken, so that there is room to say what was dropped.
func (q *logQueue) next() (l logLine, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if n := q.dropped; n > 0 && len(q.lines) < maxLogLines {
		r := slog.NewRecord(time.Now(), slog.LevelWarn, "grace: log lines dropped", 0)
		r.Add("lines", n, "do", "see why the log is not written as fast as it is filled")
		q.lines = append(q.lines, logLine{ctx: context.Background(), to: q.lost, record: r, note: true})
		q.dropped, q.lost = 0, nil
	}
	if len(q.lines) == 0 {
		q.lines, q.writing = nil, false
		if q.written != nil {
			close(q.written)
			q.written = nil
		}
		return l, false
	}
	l = q.lines[0]
	q.lines[0] = logLine{}
	q.lines = q.lines[1:]
	return l, true
}

// write hands l to its handler. A line at which that panics is lost.
func (q *logQueue) write(l logLine) {
	taken := false
	defer func() {
		if !taken {
			recover()
		}
		q.mu.Lock()
		defer q.mu.Unlock()
		q.stuck = false
		if !taken && !l.note {
			q.dropped++
			q.lost = l.to
		}
	}()
	h := l.to
	if h.Enabled(l.ctx, l.record.Level) {
		if l.with != nil {
			h = l.with(h)
		}
		h.Handle(l.ctx, l.record) // an error is dropped, as by slog itself
	}
	taken = true
}

// flush returns when nothing is queued any more, or after logPatience: at once
// if nothing was taken since it has given up before.
func (q *logQueue) flush() {
	q.mu.Lock()
	if !q.writing || q.stuck {
		q.mu.Unlock()
		return
	}
	if q.written == nil {
		q.written = make(chan struct{})
	}
	written := q.written
	q.mu.Unlock()
	limit := time.NewTimer(logPatience)
	defer limit.Stop()
	select {
	case <-written:
	case <-limit.C:
		q.mu.Lock()
		q.stuck = true
		q.mu.Unlock()
	}
}
