package grace

import "time"

// The read deadline of a connection is the server's. But while its process ends,
// how long it may be idle is for us to say.

// bound is how long the next Read may wait while the process wants to end; 0 if
// as long as the server says. Between two requests that is the idle grace; while
// a request's header is on its way, it is the same from each byte to the next. A
// request that the handler has is not bound: that is what DrainTimeout is for.
func (t *track) bound() time.Duration {
	switch {
	case t.woken || t.phase != phaseIdle && t.phase != phaseNew:
		return 0
	case t.begun && !t.known:
		return 0 // whatever is going on
	case t.grace > 0:
		return t.grace
	case t.begun && t.mover != nil: // else it moves
		return t.mover.grace
	}
	return 0
}

// cap lets a Read wait as long as bound says, or as long as the server does.
func (t *track) cap() error {
	bound := t.bound()
	if bound == 0 {
		t.uncap()
		return nil
	}
	end := time.Now().Add(bound)
	if !t.want.IsZero() && t.want.Before(end) {
		end = t.want
	}
	t.capped = true
	return t.limit(end)
}

// uncap gives the server its own deadline back.
func (t *track) uncap() {
	if t.capped {
		t.capped = false
		t.limit(t.want)
	}
}

// finish says how long it may be idle from now on; 0 takes that back.
func (t *track) finish(grace time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.away { // its descriptor may be that of another track by now
		return
	}
	if grace != t.grace {
		t.ownDetour()
		t.grace = grace
	}
	if grace > 0 && t.reading > 0 && t.mayBlock() {
		t.unblock()
	}
	t.cap()
}
