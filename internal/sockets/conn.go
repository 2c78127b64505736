package sockets

import (
	"bufio"
	"errors"
	"io"
	"math"
	"net"
	"os"
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
		t.Track.deadline.set(deadlineExposed) // the program has more ways to read from it
		t.Track.begin(c, l, unread, old, stays)
		return t
	}
	return c // not reached: a listener of ours accepts nothing else
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
		case *TLSConn:
			return &v.tcp.Track
		case interface{ NetConn() net.Conn }:
			c = v.NetConn()
		default:
			return nil
		}
	}
}

// read is Read on c: the inner connection, or TLS over it.
func (t *Track) read(c net.Conn, p []byte) (int, error) {
	size := int32(min(len(p), math.MaxInt32))
	for {
		t.mu.Lock()
		if n, ok, err := t.beforeRead(p, size); ok {
			return n, err
		}
		t.mu.Unlock()
		n, err := c.Read(p)
		t.mu.Lock()
		if t.progress == progressNone {
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
	case t.life == lifeMoving:
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
			err = t.setPending()
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
	t.progress = progressBegun
	t.cap()
	return n
}

// afterRead is what a Read does once it comes back: it takes back a deadline that
// was ours, or leaves. If bytes have come, the connection does not move now.
func (t *Track) afterRead(n int, offered int32, err error) (again bool, _ error) {
	t.offered = 0
	t.reading--
	if n > 0 {
		t.progress, t.told = progressBegun, false
		if t.Mover != nil || t.deadline.has(deadlineBounded|deadlineWakes) {
			t.rebound()
		}
		return false, err
	}
	if !t.deadline.has(deadlineWakes) {
		return false, err
	}
	t.deadline.clear(deadlineWakes | deadlineBounded)
	if t.bound() > 0 { // not moved after all
		t.cap()
	} else {
		t.limit(t.Want)
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return false, err
	}
	if leave := t.mustLeave(offered); leave != nil {
		return false, leave
	}
	// The move was called off; the server is not to notice.
	return t.Want.IsZero() || time.Now().Before(t.Want), err
}

// rebound sets the read deadline anew once bytes have come, if it was ours or the
// connection is to move.
func (t *Track) rebound() {
	if t.deadline.has(deadlineWakes) {
		t.deadline.clear(deadlineWakes | deadlineBounded)
		t.limit(t.Want)
	}
	if t.Mover != nil || t.deadline.has(deadlineBounded) {
		t.cap()
	}
}

// FullSlice is how large a slice the server of net/http offers when its buffer is
// empty: the size of a bufio.Reader. A larger one that was seen counts instead.
var FullSlice = int32(bufio.NewReader(nil).Size())

// mayLeave reports whether nothing of the next request is in the server's hands,
// if its Read was offered this many bytes: nothing was read at all yet, or the
// server has reported that the connection is idle, no request has begun since,
// and all of its buffer is free.
func (t *Track) mayLeave(offered int32) bool {
	switch {
	case t.Mover == nil && !t.ending, len(t.unread) > 0, t.life >= lifeClosed:
	case t.phase == PhaseOther:
		return !t.told
	case t.Mover == nil, t.origin.flags&originDirect == 0:
	case t.phase == phaseNew:
		return t.progress == progressNone
	case t.phase == PhaseIdle:
		return t.progress != progressBegun && offered >= max(t.full, FullSlice)
	}
	return false
}

// mustLeave returns the error with which a Read returns so that the connection
// can move: the server of net/http takes it for a timeout and closes, and our
// Close moves the connection; a server of the user's calls Move.
func (t *Track) mustLeave(offered int32) error {
	switch {
	case t.life == lifeLeaving:
		return os.ErrDeadlineExceeded
	case !t.mayLeave(offered):
		return nil
	case t.phase == PhaseOther:
		t.told = true
		return ErrMove
	}
	t.life = lifeLeaving
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
		t.deadline.set(deadlineWakes)
		t.limit(gate.LongAgo)
	} else if t.life != lifeMoving {
		t.cap()
	}
	return true
}

// mayBlock reports whether the program may have had the descriptor in its hands,
// and made it a blocking one, as File does.
func (t *Track) mayBlock() bool {
	return (t.origin.has(originCustom) || t.deadline.has(deadlineExposed)) && t.life != lifeMoving
}

// SetKnown notes that a server of net/http has the connection; direct, that the
// server has the connection itself, and no wrapper of it.
func (t *Track) SetKnown(direct bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.origin.clear(originDirect)
	t.origin.set(originKnown)
	if direct {
		t.origin.set(originDirect)
	}
}

// SetTLS notes that TLS is spoken over the connection.
func (t *Track) SetTLS() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.origin.set(originTLS)
}

// Protocol is the one that a server of net/http speaks over the connection:
// ProtocolHTTP1, or ProtocolTLS if it can be moved, and otherwise "".
func (t *Track) Protocol() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case !t.origin.has(originTLS):
		return ProtocolHTTP1
	case t.Detour.tls != nil:
		return ProtocolTLS
	}
	return ""
}

// IsTLS reports whether TLS is spoken over the connection.
func (t *Track) IsTLS() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.origin.has(originTLS)
}

func (t *Track) IsDirect() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.origin.has(originDirect) && t.phase != PhaseHTTP2 && t.phase != PhaseHijacked
}

// Movable reports whether the connection is to move as soon as it may.
func (t *Track) Movable() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.Mover != nil && t.origin.has(originDirect) && t.phase != PhaseHTTP2 && t.phase != PhaseHijacked
}

// customize: the program may set options of the socket.
func (t *Track) customize() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.origin.set(originCustom)
}

// expose is customize, and the program may read from the socket itself.
func (t *Track) expose() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.origin.set(originCustom)
	t.setExposed()
}

// bypass: from now on bytes are read without this package. Those that it has come
// first.
func (t *Track) bypass(w io.Writer) (int64, error) {
	t.mu.Lock()
	if t.life == lifeMoving {
		t.mu.Unlock()
		return 0, net.ErrClosed
	}
	t.progress = progressBegun
	t.uncap()
	t.setExposed()
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
		t.phase, t.progress = PhaseIdle, progressAwaited
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
	if t.progress == progressBegun {
		t.progress = progressAwaited
	}
	if !t.life.isOver() {
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
	Reading, Offered           int32     // see request
	Idle, Begun, Touched, Lent bool      // Lent: originShared
	Deadline                   time.Time // that the server has set; zero in the prelude
}

func (t *Track) State() TrackState {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := TrackState{
		Reading: t.reading, Offered: t.offered, Idle: t.phase == PhaseIdle,
		Begun: t.progress == progressBegun, Touched: t.progress != progressNone, Lent: t.origin.has(originShared),
	}
	if !t.muted {
		s.Deadline = t.Want
	}
	return s
}
