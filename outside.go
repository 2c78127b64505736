package grace

import (
	"context"
	"sync"
	"time"
)

// The goroutine that owns the Upgrader's state waits for nothing outside: not for a
// disk, a lock, a resolver, a supervisor's socket, nor for the program's own code.
// What may wait for such a thing is done by another goroutine, which posts what
// came of it. Nor may that one hold a lock meanwhile that the first needs.

const (
	// restorePatience is how long the last line of a roll back waits for what the
	// roll back restores; this process accepts long before.
	restorePatience = time.Second
	// endPatience is how long the end of this process waits for a server's own
	// code, and for the PID file.
	endPatience = 5 * time.Second
)

// restore puts back what the new process may have taken, and what this one had
// closed: the PID file, and listeners. then is called in
// the loop when all is there, or has been waited for long enough, with the callers
// of the upgrade that has failed. The next upgrade waits until all is there.
func (u *Upgrader) restore(then func(callers []chan error)) {
	u.restoring++
	callers := u.current
	u.current = nil
	once := sync.OnceFunc(func() { then(callers) })
	jobs := []func(){u.retakePIDFile, func() { u.socks.settled(u.ctx) }}
	go func() {
		late := time.AfterFunc(restorePatience, func() { u.post(once) })
		within(0, jobs...)
		late.Stop()
		restored := func() {
			u.restoring--
			once()
			u.settle()
		}
		if !u.post(restored) {
			once() // the loop has ended, and nobody else answers
		}
	}()
}

// leavePatience is how long a start may take to give up when its time is over.
const leavePatience = 2 * time.Second

// startOrLeave is start, but for a start that does not heed its context, since a
// disk hangs under the PID file or the binary. It is left behind: it must keep the
// process from nothing, and what it starts after all is killed.
func (u *Upgrader) startOrLeave(ctx context.Context) (*successor, error) {
	type result struct {
		s   *successor
		err error
	}
	started := make(chan result, 1)
	go func() {
		s, err := u.start(ctx)
		started <- result{s, err}
	}()
	select {
	case r := <-started:
		return r.s, r.err
	case <-ctx.Done():
	}
	patience := time.NewTimer(leavePatience)
	defer patience.Stop()
	select {
	case r := <-started:
		return r.s, r.err
	case <-patience.C:
	}
	go func() {
		if r := <-started; r.s != nil { // it waits for a go that never comes
			r.s.proc.kill()
			r.s.ch.close()
			r.s.pipe.Close()
			r.s.proc.wait()
		}
	}()
	return nil, &stuckError{path: "the start of a new process", doing: "for the PID file, the binary or a socket"}
}

// within calls each of fs in a goroutine of its own, and returns when all of them
// have returned, or when limit is over; 0 is no limit.
func within(limit time.Duration, fs ...func()) {
	done := make(chan struct{}, len(fs))
	for _, f := range fs {
		go func() {
			defer func() { done <- struct{}{} }()
			f()
		}()
	}
	var over <-chan time.Time
	if limit > 0 {
		t := time.NewTimer(limit)
		defer t.Stop()
		over = t.C
	}
	for range fs {
		select {
		case <-done:
		case <-over:
			return
		}
	}
}
