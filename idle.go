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
	same := d.IsZero() && t.want.IsZero() && !t.capped && !t.closed
	t.want = d
	if t.woken {
		return nil
	}
	t.capped = false
	if t.mayCap() {
		return t.cap()
	}
	if same {
		return nil // net/http takes back deadlines that it has not set, thrice a request
	}
	return t.inner.SetReadDeadline(d)
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
	t.inner.SetReadDeadline(t.want)
}

// setMoved says that the connection was moved here, and the server's idle
// timeout; 0 is none.
func (t *track) setMoved(idle time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if idle <= 0 {
		t.idleFor = -1
		return
	}
	t.idleFor = idle
	t.want = time.Now().Add(idle) // a server without a header timeout sets none
	t.inner.SetReadDeadline(t.want)
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
	return t.inner.SetReadDeadline(end)
}

// uncap gives the server its own deadline back: a request has begun.
func (t *track) uncap() {
	if t.capped {
		t.capped = false
		t.inner.SetReadDeadline(t.want)
	}
}

// finish says how long it may be idle from now on; 0 takes that back.
func (t *track) finish(grace time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.away { // its descriptor may be that of another track by now
		return
	}
	t.grace = grace
	if t.mayCap() {
		t.cap()
	} else {
		t.uncap()
	}
}
