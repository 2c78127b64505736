package sockets

import "time"

// The read deadline of a connection is the server's. But while its process ends,
// this package decides how long the connection may be idle.

// bound is how long the next Read may wait while the process wants to end; 0 if
// as long as the server says. Between two requests that is the idle grace; while
// a request's header is on its way, it is the same from each byte to the next. A
// request that the handler has is not bound: that is what DrainTimeout is for.
func (t *Track) bound() time.Duration {
	switch {
	case t.deadline.has(deadlineWakes) || t.phase != PhaseIdle && t.phase != phaseNew:
		return 0
	case t.progress == progressBegun && !t.origin.has(originKnown):
		return 0 // whatever is going on
	case t.grace > 0:
		return t.grace
	case t.progress == progressBegun && t.Mover != nil: // else it moves
		return t.Mover.Grace
	}
	return 0
}

// cap lets a Read wait as long as bound allows, and for a request until rest, but no
// longer than the server does.
func (t *Track) cap() error {
	bound := t.bound()
	if bound == 0 {
		t.uncap()
		return nil
	}
	end := time.Now().Add(bound)
	if t.rest.After(end) && t.progress != progressBegun {
		end = t.rest
	}
	if !t.Want.IsZero() && t.Want.Before(end) {
		end = t.Want
	}
	t.deadline.set(deadlineBounded)
	return t.limit(end)
}

// uncap gives the server its own deadline back.
func (t *Track) uncap() {
	if t.deadline.flags&deadlineBounded != 0 {
		t.deadline.flags &^= deadlineBounded
		t.limit(t.Want)
	}
}

// Finish sets how long the connection may be idle from now on; 0 takes that back.
func (t *Track) Finish(grace time.Duration) { t.FinishBy(grace, time.Time{}) }

// FinishBy is Finish for a connection that may wait for its next request until rest,
// if that is later.
func (t *Track) FinishBy(grace time.Duration, rest time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.life == lifeMoving { // its descriptor may be that of another track by now
		return
	}
	if grace != t.grace || !rest.Equal(t.rest) {
		t.ownDetour()
		t.grace, t.rest = grace, rest
	}
	if grace > 0 && t.reading > 0 && t.mayBlock() {
		t.unblock()
	}
	t.cap()
}
