package grace

import "time"

// The read deadline of a connection is the server's. But while its process ends,
// how long it may be idle is for us to say.

// mayCap: it is between two requests, and the process wants to end.
func (t *track) mayCap() bool {
	return t.grace > 0 && !t.begun && !t.woken && (t.phase == phaseIdle || t.phase == phaseNew)
}

// cap lets a Read wait for the idle grace at most.
func (t *track) cap() error {
	end := time.Now().Add(t.grace)
	if !t.want.IsZero() && t.want.Before(end) {
		end = t.want
	}
	t.capped = true
	return t.limit(end)
}

// uncap gives the server its own deadline back: a request has begun.
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
	if t.mayCap() {
		t.cap()
	} else {
		t.uncap()
	}
}
