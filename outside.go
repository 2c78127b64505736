package grace

import (
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
