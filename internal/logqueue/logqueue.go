// Package logqueue keeps a log that blocks from holding up the process that logs to it.
//
// Standard error may be a pipe that nothing reads any more, and a process that waits for
// it could neither be upgraded nor stopped. So log lines are queued, and one goroutine
// hands them to the program's handler. They keep their order and the time at which they
// were logged. Lines that the queue has no room for are counted, and the number is logged
// once there is room again.
package logqueue

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

const (
	maxLines = 1024
	// flushLimit is how long Flush waits. It is what a log that is stuck may cost the
	// end of the process.
	flushLimit = time.Second
)

// A handler queues the lines for the program's handler.
type handler struct {
	q *Queue
	// to gives the program's handler. It must not block.
	to func() slog.Handler
	// with adds this handler's attributes and groups to it. It is nil if there are none.
	with func(slog.Handler) slog.Handler
}

// Enabled is left to the goroutine that writes: the program's Enabled may block, too.
func (h *handler) Enabled(context.Context, slog.Level) bool { return true }

func (h *handler) Handle(ctx context.Context, r slog.Record) error {
	h.q.add(line{ctx: ctx, to: h.to(), with: h.with, record: r.Clone()})
	return nil
}

func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return h.and(func(to slog.Handler) slog.Handler { return to.WithAttrs(attrs) })
}

func (h *handler) WithGroup(name string) slog.Handler {
	return h.and(func(to slog.Handler) slog.Handler { return to.WithGroup(name) })
}

func (h *handler) and(f func(slog.Handler) slog.Handler) slog.Handler {
	with := f
	if before := h.with; before != nil {
		with = func(to slog.Handler) slog.Handler { return f(before(to)) }
	}
	return &handler{q: h.q, to: h.to, with: with}
}

type line struct {
	ctx    context.Context
	to     slog.Handler
	with   func(slog.Handler) slog.Handler
	record slog.Record
	note   bool // it is the library's own note that lines were dropped
}

// A Queue holds the lines that are not written yet. Its goroutine runs only while there
// are some. The zero value is ready to use. All methods may be called from several
// goroutines at once.
//
// mu guards all fields. No handler of the program is called with mu held.
type Queue struct {
	mu      sync.Mutex
	lines   []line
	dropped int
	lost    slog.Handler // the handler of the last line that was dropped
	writing bool
	written chan struct{} // closed when nothing is left; nil if no Flush waits for it
	stuck   bool          // no line was written since a Flush has given up
}

// Logger returns a logger that queues its lines for l, or, if l is nil, for what
// slog.Default is at each line. If l drops everything, it returns l itself.
func (q *Queue) Logger(l *slog.Logger) *slog.Logger {
	to := func() slog.Handler { return slog.Default().Handler() }
	if l != nil {
		h := l.Handler()
		if h == slog.DiscardHandler {
			return l
		}
		to = func() slog.Handler { return h }
	}
	return slog.New(&handler{q: q, to: to})
}

func (q *Queue) add(l line) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.lines) >= maxLines {
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

func (q *Queue) run() {
	done := false
	defer func() {
		if !done { // the handler has called runtime.Goexit, as testing.T.FailNow does
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

// next removes and returns the line to be written now, if there is one. The line before
// it has left the queue, so there is room for a note of how many were dropped.
func (q *Queue) next() (l line, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if n := q.dropped; n > 0 && len(q.lines) < maxLines {
		r := slog.NewRecord(time.Now(), slog.LevelWarn, "grace: log lines dropped", 0)
		r.Add("lines", n, "hint", "see why the log is not written as fast as it is filled")
		q.lines = append(q.lines, line{ctx: context.Background(), to: q.lost, record: r, note: true})
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
	q.lines[0] = line{}
	q.lines = q.lines[1:]
	return l, true
}

// write hands l to its handler. If the handler panics, l is lost, and counted.
func (q *Queue) write(l line) {
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

// Flush waits until nothing is queued any more, for at most one second. It reports
// whether all was written. If no line was written since a Flush that has given up, it
// returns at once: a log that is stuck costs that second only once.
func (q *Queue) Flush() bool {
	q.mu.Lock()
	if !q.writing || q.stuck {
		all := !q.writing
		q.mu.Unlock()
		return all
	}
	if q.written == nil {
		q.written = make(chan struct{})
	}
	written := q.written
	q.mu.Unlock()
	limit := time.NewTimer(flushLimit)
	defer limit.Stop()
	select {
	case <-written:
		return true
	case <-limit.C:
		q.mu.Lock()
		defer q.mu.Unlock()
		q.stuck = true
		return false
	}
}
