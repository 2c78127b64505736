package grace

import (
	"net"
	"time"
)

// The read deadline of a connection is the server's. But while its process ends,
// or after it was moved, how long it may be idle is for us to say.

// setReadDeadline is the server's. One that wakes a Read stays; the server's
// comes back with the Read.
func (t *track) setReadDeadline(d time.Time) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.away {
		return net.ErrClosed
	}
	if t.idleFor != 0 && !t.touched && t.phase == phaseNew {
		d = t.beginIdle(d)
	}
	if t.phase == phaseIdle {
		// The second deadline since it became idle is that of a request, whose
		// first bytes were in the server's buffer already: nobody has read them
		// since, and the buffer may be empty again by the next Read.
		t.begun = t.begun || t.waiting
		t.waiting = true
	}
	t.want = d
	if t.woken {
		return nil
	}
	t.capped = false
	if t.mayCap() {
		return t.cap()
	}
	if t.reading > 0 || t.bare || t.closed {
		return t.limit(d)
	}
	t.late = true
	return nil
}

// setWriteDeadline is the server's. net/http takes one back after each request.
func (t *track) setWriteDeadline(d time.Time) error {
	t.mu.Lock()
	if t.away {
		t.mu.Unlock()
		return net.ErrClosed
	}
	none := d.IsZero() && !t.timed && !t.bare && !t.closed
	t.timed = t.timed || !d.IsZero()
	t.mu.Unlock()
	if none {
		return nil
	}
	return t.inner.SetWriteDeadline(d)
}

// limit sets the read deadline of the inner connection.
func (t *track) limit(d time.Time) error {
	t.late, t.limited = false, !d.IsZero()
	return t.inner.SetReadDeadline(d)
}

// setLate sets, before a Read, the deadline that came when nobody read; with its
// error that Read fails. net/http sets several in each request: one in the past,
// to get a Read out that has mostly not begun, and none where there was none.
func (t *track) setLate() error {
	switch {
	case !t.late:
	case t.want.IsZero() && !t.limited:
		t.late = false
	case !t.want.IsZero() && !t.want.After(longAgo) && !t.closed:
		return t.l.expired // it is there to stop a Read, and stays late
	default:
		t.limit(t.want)
	}
	return nil
}

// setBare: the program may use the inner connection itself. That has deadlines
// at once, from now on.
func (t *track) setBare() {
	t.bare = true
	if t.late && !t.away { // inner may be another track's by then
		t.limit(t.want)
	}
}

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
