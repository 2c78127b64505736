package sockets

import (
	"bufio"
	"errors"
	"io"
	"math"
	"net"
	"os"
	"sync"
	"time"

	"github.com/julofinance/grace/v3/internal/gate"
)

// Tracked lets l keep track of its connection c. unread are bytes that were read
// from it before, and come first. c takes the place of old, which the Mover stays
// could not move, and is never given to that Mover.
func Tracked(c net.Conn, l *Listener, unread []byte, old *Track, stays *Mover) net.Conn {
	switch c := c.(type) {
	case *net.TCPConn:
		t := &TCPConn{TCPConn: c}
		t.Track.begin(c, l, unread, old, stays)
		return t
	case *net.UnixConn:
		t := &UnixConn{UnixConn: c}
		t.Track.bare = true // the program has more ways to read from it
		t.Track.begin(c, l, unread, old, stays)
		return t
	}
	return c // not reached: a listener of ours accepts nothing else
}

// A phase is the state of a connection as the server reports it.
type phase uint8

const (
	phaseNew      phase = iota // accepted; no request yet
	PhaseBusy                  // a request is read or answered
	PhaseIdle                  // answered; the next request may come
	PhaseHTTP2                 // any number of requests at once
	PhaseHijacked              // not the server's any more
	PhaseOther                 // of a Server with a Protocol of its own
)

// A Track is what a listener knows of one connection. With its TCPConn it fills
// two lines of the processor's cache; the fields that each Read looks at come
// first.
type Track struct {
	Listener *Listener
	Inner    net.Conn

	mu      sync.Mutex
	phase   phase
	origin  origin
	custom  bool  // its options may not be those of a new connection
	lent    bool  // another process may have a copy of it, and not know yet that it is not to use it
	direct  bool  // the server has the connection itself, not a wrapper of it
	touched bool  // bytes were read
	begun   bool  // a request has begun since it was accepted, or became idle
	waiting bool  // the server has set its deadline for the time in which it is idle
	capped  bool  // the read deadline is not want, but the idle grace's
	woken   bool  // the read deadline is in the past, to move it
	told    bool  // the Read of a protocol of the user's has returned ErrMove
	ending  bool  // there is no mover, and the process ends: ErrMove all the same
	leaving bool  // nothing is buffered and no Read is under way: Close moves it
	closed  bool  // Close was called, or Move
	away    bool  // the mover has it: nothing else may close its descriptor
	late    bool  // the server's read deadline is set when the next Read comes
	limited bool  // Inner has a read deadline
	timed   bool  // Inner may have a write deadline
	bare    bool  // the program may use Inner itself: nothing is late
	known   bool  // a server of net/http reports its phase
	post    bool  // the request that is answered, or was last, is a POST
	muted   bool  // what is written is the answer to the prelude; the server's goroutine has it
	reading int32 // how many Reads are pending
	offered int32 // to the Read that is pending; 0 if none is
	full    int32 // the largest slice that a Read was offered between two requests
	place   int32 // in Listener.Live, from 1; 0 if it is not there. Live.mu guards it

	Mover *Mover    // takes it to the new process as soon as it may move
	Want  time.Time // the read deadline that the server has set
	*Detour
}

// A Detour has the fields that only a connection needs that was moved, or is to
// end. All others share one that is empty, and never written to.
type Detour struct {
	unread  []byte // comes before what the kernel has
	grace   time.Duration
	lingers time.Duration // after its last answer, if that is on the way
	play    *play         // while muted
	First   []byte        // of a connection of a live that keeps them: see proof.go
	stays   *Mover        // has failed to move it, and is not to try again and again
	// Of a connection that another server had before: see continued.
	until time.Time     // the read deadline that it had set
	age   time.Duration // how long it had waited, if aged
	aged  bool
}

var straight Detour

// ownDetour gives the track a detour of its own.
func (t *Track) ownDetour() {
	if t.Detour == &straight {
		t.Detour = new(Detour)
	}
}

// begin fills the track and adds it to those of l.
func (t *Track) begin(c net.Conn, l *Listener, unread []byte, old *Track, stays *Mover) {
	t.Listener, t.Inner, t.custom, t.Detour = l, c, l.custom, &straight
	if len(unread) > 0 || stays != nil {
		t.Detour = &Detour{unread: unread, stays: stays}
	}
	l.Live.add(t, old)
}

// TrackOf finds the track under c, if c is ours, or TLS over one of ours.
func TrackOf(c net.Conn) *Track {
	for {
		switch v := c.(type) {
		case *TCPConn:
			return &v.Track
		case *UnixConn:
			return &v.Track
		case *MemConn:
			return &v.Track
		case interface{ NetConn() net.Conn }:
			c = v.NetConn()
		default:
			return nil
		}
	}
}

// read is Read on the inner connection.
func (t *Track) read(p []byte) (int, error) {
	size := int32(min(len(p), math.MaxInt32))
	for {
		t.mu.Lock()
		if n, ok, err := t.beforeRead(p, size); ok {
			return n, err
		}
		t.mu.Unlock()
		n, err := t.Inner.Read(p)
		t.mu.Lock()
		if !t.touched {
			t.keep(p[:n])
		}
		again, err := t.afterRead(n, size, err)
		t.mu.Unlock()
		if !again {
			return n, err
		}
	}
}

// beforeRead is what a Read does before it comes to the inner connection. If ok
// is true the Read does not come to it, and t.mu is not held any more.
func (t *Track) beforeRead(p []byte, size int32) (n int, ok bool, err error) {
	switch {
	case t.away:
		err = net.ErrClosed
	case len(t.unread) > 0:
		n = t.takeUnread(p)
	case t.muted:
		t.mu.Unlock()
		n, err = t.playWait()
		return n, true, err
	default:
		if t.phase != PhaseBusy { // a body is also read past the server's buffer, in larger slices
			t.full = max(t.full, size)
		}
		if err = t.mustLeave(size); err == nil {
			err = t.setLate()
		}
		if err == nil {
			t.offered = size
			t.reading++
			return 0, false, nil
		}
	}
	t.mu.Unlock()
	return n, true, err
}

// takeUnread returns bytes that came along with the connection. t.mu is held.
func (t *Track) takeUnread(p []byte) int {
	n := copy(p, t.unread)
	t.unread = t.unread[n:]
	t.touched, t.begun = true, true
	t.cap()
	return n
}

// afterRead is what a Read does once it comes back: it takes back a deadline that
// was ours, or leaves. If bytes have come, the connection does not move now.
func (t *Track) afterRead(n int, offered int32, err error) (again bool, _ error) {
	t.offered = 0
	t.reading--
	woken := t.woken
	if woken {
		t.woken, t.capped = false, false
		if n == 0 && t.bound() > 0 { // not moved after all
			t.cap()
		} else {
			t.limit(t.Want)
		}
	}
	if n > 0 {
		t.touched, t.begun, t.told = true, true, false
		if t.capped || t.Mover != nil {
			t.cap()
		}
		return false, err
	}
	if !woken || !errors.Is(err, os.ErrDeadlineExceeded) {
		return false, err
	}
	if leave := t.mustLeave(offered); leave != nil {
		return false, leave
	}
	// The move was called off; the server is not to notice.
	return t.Want.IsZero() || time.Now().Before(t.Want), err
}

// FullSlice is how large a slice the server of net/http offers when its buffer is
// empty: the size of a bufio.Reader. A larger one that was seen counts instead.
var FullSlice = int32(bufio.NewReader(nil).Size())

// mayLeave reports whether nothing of the next request is in the server's hands,
// if its Read was offered this many bytes: nothing was read at all yet, or the
// server has reported that the connection is idle, no request has begun since,
// and all of its buffer is free.
func (t *Track) mayLeave(offered int32) bool {
	if t.Mover == nil && !t.ending || len(t.unread) > 0 || t.closed {
		return false
	}
	if t.phase == PhaseOther {
		return !t.told
	}
	if !t.direct || t.Mover == nil {
		return false
	}
	return t.phase == phaseNew && !t.touched ||
		t.phase == PhaseIdle && !t.begun && offered >= max(t.full, FullSlice)
}

// mustLeave returns the error with which a Read returns so that the connection
// can move: the server of net/http takes it for a timeout and closes, and our
// Close moves the connection; a server of the user's calls Move.
func (t *Track) mustLeave(offered int32) error {
	switch {
	case t.leaving:
		return os.ErrDeadlineExceeded
	case !t.mayLeave(offered):
		return nil
	case t.phase == PhaseOther:
		t.told = true
		return ErrMove
	}
	t.leaving = true
	return os.ErrDeadlineExceeded
}

// Offer gives the connection a mover: it is moved at once if it may, or as soon
// as it may. With nil the move is called off. False if it stays.
func (t *Track) Offer(m *Mover) bool { return t.release(m, false) }

// release is Offer; or, with ending, it tells the connection that the process
// ends and that no process takes it.
func (t *Track) release(m *Mover, ending bool) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if m != nil && t.stays == m {
		return false
	}
	t.Mover, t.ending = m, ending
	t.told = false
	if t.reading > 0 && (m != nil || ending) && t.mayBlock() {
		t.unblock()
	}
	if t.offered > 0 && t.mayLeave(t.offered) {
		t.woken = true
		t.limit(gate.LongAgo)
	} else if !t.away {
		t.cap()
	}
	return true
}

// mayBlock reports whether the program may have had the descriptor in its hands,
// and made it a blocking one, as File does.
func (t *Track) mayBlock() bool { return (t.custom || t.bare) && !t.away }

// SetKnown notes that a server of net/http has the connection; direct, that the
// server has the connection itself, and no wrapper of it.
func (t *Track) SetKnown(direct bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.known, t.direct = true, direct
}

func (t *Track) IsDirect() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.direct && t.phase != PhaseHTTP2 && t.phase != PhaseHijacked
}

// Movable reports whether the connection is to move as soon as it may.
func (t *Track) Movable() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.Mover != nil && t.direct && t.phase != PhaseHTTP2 && t.phase != PhaseHijacked
}

// customize: the program may set options of the socket.
func (t *Track) customize() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.custom = true
}

// expose is customize, and the program may read from the socket itself.
func (t *Track) expose() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.custom = true
	t.setBare()
}

// bypass: from now on bytes are read without this package. Those that it has come
// first.
func (t *Track) bypass(w io.Writer) (int64, error) {
	t.mu.Lock()
	if t.away {
		t.mu.Unlock()
		return 0, net.ErrClosed
	}
	t.touched, t.begun = true, true
	t.uncap()
	t.setBare()
	unread := t.unread
	if len(unread) == 0 {
		t.mu.Unlock()
		return 0, nil
	}
	t.unread = nil
	t.mu.Unlock()
	n, err := w.Write(unread)
	return int64(n), err
}

// SetPhase notes the phase that the server reports.
func (t *Track) SetPhase(p phase) {
	t.mu.Lock()
	switch {
	case t.phase == PhaseHTTP2 && p != PhaseHijacked || t.phase == PhaseHijacked:
		// net/http calls HTTP/2 connections idle as well.
	case p == PhaseIdle: // the server sets its deadline next
		t.phase, t.begun, t.waiting = p, false, false
	default:
		t.phase, t.post = p, false
		if !t.muted && !t.until.IsZero() { // the wait that this deadline ends is over
			t.until = time.Time{}
		}
		t.uncap()
	}
	t.mu.Unlock()
}

// AwaitRequest notes that what has been read so far was no request. While the
// process ends the connection may be idle for the idle grace only.
func (t *Track) AwaitRequest() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.begun = false
	if !t.closed {
		t.cap()
	}
}

// Unpeek puts b before what the connection reads next.
func (t *Track) Unpeek(b []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(b) > 0 {
		t.ownDetour()
		t.unread = append(b, t.unread...)
		if !t.muted { // else these bytes are the prelude's, not the client's
			t.until = time.Time{} // the server waits only from now on
		}
	}
}

// IsMuted reports whether the prelude is being played to the server's goroutine,
// which is the one that calls this.
func (t *Track) IsMuted() bool { return t.muted }

// A TrackState is the state of a connection, for tests.
type TrackState struct {
	Reading, Offered           int32 // see Track
	Idle, Begun, Touched, Lent bool
	Deadline                   time.Time // that the server has set; zero in the prelude
}

func (t *Track) State() TrackState {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := TrackState{Reading: t.reading, Offered: t.offered, Idle: t.phase == PhaseIdle, Begun: t.begun, Touched: t.touched, Lent: t.lent}
	if !t.muted {
		s.Deadline = t.Want
	}
	return s
}
