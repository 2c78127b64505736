package grace

import "sync"

// inUse guards against a second Upgrader in one process: the sockets of the old
// process, the signals and the PID file are there once.
var inUse use

type use struct {
	mu     sync.Mutex // guards the following
	making bool       // New is at it
	by     *Upgrader  // nil: none was made yet
}

// take reports whether an Upgrader may be made. It waits for one whose Done is
// closed, which takes a moment more to end; not for one that looks after a new
// process until that ends.
func (i *use) take() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.making {
		return false
	}
	if u := i.by; u != nil {
		select {
		case <-u.over:
		case <-u.done:
			if u.post(func() {}) {
				return false // it handles events still: there is a new process
			}
		default:
			return false
		}
	}
	i.making, i.by = true, nil
	return true
}

// made ends what take has begun; u is nil if nothing was made.
func (i *use) made(u *Upgrader) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.making, i.by = false, u
}
