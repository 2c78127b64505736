// Package inorder calls a function of the program with one value after the other, without
// ever waiting for it: values are queued, and a goroutine that runs only while there are
// some delivers them in order. None is dropped.
package inorder

import (
	"sync"
	"time"
)

// A Queue holds the values that were not delivered yet. All methods may be called from
// several goroutines at once.
type Queue[T any] struct {
	deliver  func(T)
	panicked func(any)

	mu      sync.Mutex // guards the following; no function is called with it held
	values  []T
	running bool
	idle    chan struct{} // closed when all is delivered; nil if no Flush waits for it
}

// New gives a Queue that calls deliver for each value. If that panics, panicked is called
// with what recover has returned, and the next value follows.
func New[T any](deliver func(T), panicked func(any)) *Queue[T] {
	return &Queue[T]{deliver: deliver, panicked: panicked}
}

// Add queues v.
func (q *Queue[T]) Add(v T) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.values = append(q.values, v)
	if !q.running {
		q.running = true
		go q.run()
	}
}

func (q *Queue[T]) run() {
	over := false
	defer func() {
		if !over { // deliver has called runtime.Goexit, as testing.T.FailNow does
			go q.run()
		}
	}()
	for {
		v, ok := q.next()
		if !ok {
			over = true
			return
		}
		q.call(v)
	}
}

func (q *Queue[T]) next() (v T, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.values) == 0 {
		q.values, q.running = nil, false
		if q.idle != nil {
			close(q.idle)
			q.idle = nil
		}
		return v, false
	}
	v = q.values[0]
	q.values = q.values[1:]
	return v, true
}

func (q *Queue[T]) call(v T) {
	defer func() {
		if p := recover(); p != nil {
			q.panicked(p)
		}
	}()
	q.deliver(v)
}

// Flush waits until all is delivered, but no longer than limit. It reports whether it is.
func (q *Queue[T]) Flush(limit time.Duration) bool {
	q.mu.Lock()
	if !q.running {
		q.mu.Unlock()
		return true
	}
	if q.idle == nil {
		q.idle = make(chan struct{})
	}
	idle := q.idle
	q.mu.Unlock()
	late := time.NewTimer(limit)
	defer late.Stop()
	select {
	case <-idle:
		return true
	case <-late.C:
		return false
	}
}
