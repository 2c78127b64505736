package serve

import (
	"context"
	"sync/atomic"
)

// A running counts handlers that have not returned. A connection of HTTP/1 is closed after
// its handler has returned; one of HTTP/2 that was cut off is closed before that.
type running struct {
	n       atomic.Int64
	waiting atomic.Pointer[chan struct{}] // has room for one; nil: nothing waits
}

func (r *running) begin() { r.n.Add(1) }

// end looks at waiting after n, and wait sets waiting before it looks at n: so the last one
// is not missed.
func (r *running) end() {
	if r.n.Add(-1) > 0 {
		return
	}
	if none := r.waiting.Load(); none != nil {
		select {
		case *none <- struct{}{}:
		default:
		}
	}
}

// wait waits until no handler runs, or ctx ends. One goroutine at a time may wait.
func (r *running) wait(ctx context.Context) {
	none := make(chan struct{}, 1)
	r.waiting.Store(&none)
	defer r.waiting.Store(nil)
	for r.n.Load() > 0 {
		select {
		case <-none:
		case <-ctx.Done():
			return
		}
	}
}
