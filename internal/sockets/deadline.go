package sockets

import (
	"net"
	"time"

	"github.com/julofinance/grace/v3/internal/gate"
)

// The server sets a connection's deadlines, net/http several in each request: one
// in the past, to stop a Read that has mostly not begun, and none where there was
// none. A read deadline that comes when no Read is under way is late: it is set
// when a Read comes that needs it.

// setReadDeadline is SetReadDeadline, called by the server. While a deadline of
// ours wakes a Read, that one stays; the server's is set again when the Read
// comes back.
func (t *Track) setReadDeadline(d time.Time) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.away {
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
		t.begun = t.begun || t.waiting
		t.waiting = true
	}
	t.Want = d
	if t.muted {
		t.late = true
		t.playDeadline()
		return nil
	}
	if t.woken {
		return nil
	}
	t.capped = false
	if t.bound() > 0 {
		return t.cap()
	}
	if t.reading > 0 || t.bare || t.closed {
		return t.limit(d)
	}
	t.late = true
	return nil
}

// setWriteDeadline is SetWriteDeadline, called by the server. net/http removes
// the deadline after each request.
func (t *Track) setWriteDeadline(d time.Time) error {
	t.mu.Lock()
	if t.away {
		t.mu.Unlock()
		return net.ErrClosed
	}
	none := t.muted || d.IsZero() && !t.timed && !t.bare && !t.closed
	t.timed = t.timed || !none
	t.mu.Unlock()
	if none {
		return nil
	}
	return t.Inner.SetWriteDeadline(d)
}

// limit sets the read deadline of the inner connection.
func (t *Track) limit(d time.Time) error {
	t.late, t.limited = false, !d.IsZero()
	return t.Inner.SetReadDeadline(d)
}

// setLate is called before a Read, which fails with its error if that is not nil.
func (t *Track) setLate() error {
	switch {
	case !t.late:
	case t.Want.IsZero() && !t.limited:
		t.late = false
	case !t.Want.IsZero() && !t.Want.After(gate.LongAgo) && !t.closed:
		return t.Listener.expired // this deadline is there to stop a Read, and stays late
	default:
		t.limit(t.Want)
	}
	return nil
}

// setBare: the program may use the inner connection itself. From now on each
// deadline is set on it at once.
func (t *Track) setBare() {
	t.bare = true
	if t.late && !t.away { // else Inner may be another track's already
		t.limit(t.Want)
	}
}
