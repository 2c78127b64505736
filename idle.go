package grace

import "time"

// The read deadline of a connection is the server's. But while its process ends,
// or after it was moved, how long it may be idle is for us to say.

// beginIdle: a server takes a connection that was moved for a new one, and gives
// it its header timeout. But it is idle: it has the idle timeout until its first
// byte comes, and the server's time from then on.
func (t *track) beginIdle(d time.Time) time.Time {
	t.firstFor = 0
	if !d.IsZero() {
		t.firstFor = time.Until(d)
	}
	if t.idleFor < 0 {
		return time.Time{}
	}
	return time.Now().Add(t.idleFor)
}

func (t *track) endIdle() {
	t.want = time.Time{}
	if t.firstFor > 0 {
		t.want = time.Now().Add(t.firstFor)
	}
	t.limit(t.want)
}

// setMoved says that the connection was moved here, and the server's idle
// timeout; 0 is none.
func (t *track) setMoved(idle time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ownDetour()
	if idle <= 0 {
		t.idleFor = -1
		return
	}
	t.idleFor = idle
	t.want = time.Now().Add(idle) // a server without a header timeout sets none
	t.limit(t.want)
}

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
