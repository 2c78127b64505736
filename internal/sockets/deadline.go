package sockets

import (
	"net"
	"time"

	"github.com/julofinance/grace/v3/internal/gate"
)

// The server sets a connection's deadlines, net/http several in each request: one
// in the past, to stop a Read that has mostly not begun, and none where there was
// none. A read deadline that comes when no Read is under way is pending: it is set
// when a Read comes that needs it.

// setReadDeadline is SetReadDeadline, called by the server. While a deadline of
// ours wakes a Read, that one stays; the server's is set again when the Read
// comes back.
func (t *Track) setReadDeadline(d time.Time) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.life == lifeMoving {
		return net.ErrClosed
	}
	switch d {
	case PostMark:
		t.post = true
		return nil
	case whoseMark:
		return whoseError{t}
	}
	if !t.until.IsZero() {
		d = t.continued(d)
	}
	if t.phase == PhaseIdle {
		// The second deadline since it became idle is that of a request whose first
		// bytes were in the server's buffer already: no Read has seen them since,
		// and the buffer may be empty again by the next Read.
		if t.progress >= progressTimed {
			t.progress = progressBegun
		} else {
			t.progress = progressTimed
		}
	}
	t.Want = d
	if t.muted {
		t.deadline.set(deadlinePending)
		t.playDeadline()
		return nil
	}
	if t.deadline.has(deadlineWakes) {
		return nil
	}
	if t.bound() > 0 {
		return t.cap()
	}
	flags := t.deadline.flags &^ deadlineBounded
	if t.reading == 0 && flags&deadlineExposed == 0 && t.life != lifeClosed {
		t.deadline.flags = flags | deadlinePending
		return nil
	}
	t.deadline.flags = flags
	return t.limit(d)
}

// setWriteDeadline is SetWriteDeadline, called by the server. net/http removes
// the deadline after each request.
func (t *Track) setWriteDeadline(d time.Time) error {
	t.mu.Lock()
	if t.life == lifeMoving {
		t.mu.Unlock()
		return net.ErrClosed
	}
	none := t.muted || d.IsZero() && !t.deadline.has(deadlineOnWrite|deadlineExposed) && t.life != lifeClosed
	if !none {
		t.deadline.set(deadlineOnWrite)
	}
	t.mu.Unlock()
	if none {
		return nil
	}
	return t.Inner.SetWriteDeadline(d)
}

// limit sets the read deadline of the inner connection.
func (t *Track) limit(d time.Time) error {
	t.deadline.clear(deadlinePending | deadlineOnRead)
	if !d.IsZero() {
		t.deadline.set(deadlineOnRead)
	}
	return t.Inner.SetReadDeadline(d)
}

// setPending is called before a Read, which fails with its error if that is not
// nil.
func (t *Track) setPending() error {
	switch {
	case !t.deadline.has(deadlinePending):
	case t.Want.IsZero() && !t.deadline.has(deadlineOnRead):
		t.deadline.clear(deadlinePending)
	case !t.Want.IsZero() && !t.Want.After(gate.LongAgo) && t.life != lifeClosed:
		return t.Listener.expired // this deadline is there to stop a Read, and stays pending
	default:
		t.limit(t.Want)
	}
	return nil
}

// setExposed: the program may use the inner connection itself. From now on each
// deadline is set on it at once.
func (t *Track) setExposed() {
	t.deadline.set(deadlineExposed)
	if t.deadline.has(deadlinePending) && t.life != lifeMoving { // else Inner may be another track's already
		t.limit(t.Want)
	}
}
