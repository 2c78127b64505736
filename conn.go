package grace

import (
	"bufio"
	"errors"
	"github.com/julofinance/grace/v3/internal/gate"
	"io"
	"math"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// A tcpConn is what the listeners of [Upgrader.Listen] accept for tcp: a
// [net.TCPConn] that its listener keeps track of. All methods of net.TCPConn
// are there, sendfile and splice among them. tcpConn.NetConn gives it itself,
// with the deadlines that were set; take it from there, not from the field.
type tcpConn struct {
	*net.TCPConn
	track
}

// tracked puts the connection c of l under l's eyes. unread are bytes that were
// read from it before, and come first. It takes the place of old, which the
// mover stays could not move, and is never given to that one.
func tracked(c net.Conn, l *listener, unread []byte, old *track, stays *mover) net.Conn {
	switch c := c.(type) {
	case *net.TCPConn:
		t := &tcpConn{TCPConn: c}
		t.begin(c, l, unread, old, stays)
		return t
	case *net.UnixConn:
		t := &unixConn{UnixConn: c}
		t.bare = true // it has more ways to read
		t.begin(c, l, unread, old, stays)
		return t
	}
	return c // not reached: a listener of ours accepts nothing else
}

// Read is [net.TCPConn.Read].
func (c *tcpConn) Read(p []byte) (int, error) { return c.read(p) }

// Write is [net.TCPConn.Write].
func (c *tcpConn) Write(p []byte) (int, error) {
	if c.muted {
		return c.swallow(p)
	}
	return c.TCPConn.Write(p)
}

// WriteTo is [net.TCPConn.WriteTo].
func (c *tcpConn) WriteTo(w io.Writer) (int64, error) {
	first, err := c.bypass(w)
	if err != nil {
		return first, err
	}
	n, err := c.TCPConn.WriteTo(w)
	return first + n, err
}

// SetDeadline is [net.TCPConn.SetDeadline].
func (c *tcpConn) SetDeadline(t time.Time) error {
	return firstError(c.setReadDeadline(t), c.setWriteDeadline(t))
}

// SetReadDeadline is [net.TCPConn.SetReadDeadline].
func (c *tcpConn) SetReadDeadline(t time.Time) error { return c.setReadDeadline(t) }

// SetWriteDeadline is [net.TCPConn.SetWriteDeadline].
func (c *tcpConn) SetWriteDeadline(t time.Time) error { return c.setWriteDeadline(t) }

// Close is [net.TCPConn.Close].
func (c *tcpConn) Close() error { return c.close() }

// NetConn gives the net.TCPConn. Reading, closing or setting deadlines on it
// passes this package by.
func (c *tcpConn) NetConn() net.Conn { c.expose(); return c.TCPConn }

// SyscallConn is [net.TCPConn.SyscallConn].
func (c *tcpConn) SyscallConn() (syscall.RawConn, error) {
	c.expose()
	return c.TCPConn.SyscallConn()
}

// File is [net.TCPConn.File].
func (c *tcpConn) File() (*os.File, error) { c.customize(); return c.TCPConn.File() }

// SetNoDelay is [net.TCPConn.SetNoDelay].
func (c *tcpConn) SetNoDelay(noDelay bool) error {
	c.customize()
	return c.TCPConn.SetNoDelay(noDelay)
}

// SetKeepAlive is [net.TCPConn.SetKeepAlive].
func (c *tcpConn) SetKeepAlive(keepalive bool) error {
	c.customize()
	return c.TCPConn.SetKeepAlive(keepalive)
}

// SetKeepAlivePeriod is [net.TCPConn.SetKeepAlivePeriod].
func (c *tcpConn) SetKeepAlivePeriod(d time.Duration) error {
	c.customize()
	return c.TCPConn.SetKeepAlivePeriod(d)
}

// SetKeepAliveConfig is [net.TCPConn.SetKeepAliveConfig].
func (c *tcpConn) SetKeepAliveConfig(config net.KeepAliveConfig) error {
	c.customize()
	return c.TCPConn.SetKeepAliveConfig(config)
}

func firstError(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

// A phase is what the server says of a connection.
type phase uint8

const (
	phaseNew      phase = iota // accepted; no request yet
	phaseBusy                  // a request is read or answered
	phaseIdle                  // answered; the next request may come
	phaseHTTP2                 // any number of requests at once
	phaseHijacked              // not the server's any more
	phaseOther                 // of a Server with a Protocol of its own
)

// A track is what a listener knows of one connection. With its tcpConn it fills
// two lines of the processor's cache; what each Read looks at comes first.
type track struct {
	l     *listener
	inner net.Conn

	mu      sync.Mutex
	phase   phase
	origin  origin
	custom  bool  // its options may not be those of a new connection
	lent    bool  // another process may have a copy of it, and not know yet that it has not
	direct  bool  // the server has it itself, not a wrapper of it
	touched bool  // bytes were read
	begun   bool  // a request has begun since it was accepted, or became idle
	waiting bool  // the server has set its deadline for the time in which it is idle
	capped  bool  // the read deadline is not want, but the idle grace's
	woken   bool  // the read deadline is in the past, to move it
	told    bool  // the Read of a protocol of the user's has returned ErrMove
	ending  bool  // there is no mover, and the process ends: ErrMove all the same
	leaving bool  // nothing is buffered and nobody reads: Close moves it
	closed  bool  // Close was called, or Move
	away    bool  // the mover has it: nobody else may close its descriptor
	late    bool  // the server's read deadline is set when the next Read comes
	limited bool  // inner has a read deadline
	timed   bool  // inner may have a write deadline
	bare    bool  // the program may use inner itself: nothing is late
	known   bool  // a server of net/http says in which phase it is
	post    bool  // the request that is answered, or was last, is a POST
	muted   bool  // what is written is the answer to the prelude; the server's goroutine has it
	reading int32 // how many Reads are pending
	offered int32 // to the Read that is pending; 0 if none is
	full    int32 // the largest slice that a Read was offered between two requests
	place   int32 // in l.live, from 1; 0 if it is not there. l.live.mu guards it

	mover *mover    // takes it to the new process as soon as it may move
	want  time.Time // the read deadline that the server has set
	*detour
}

// A detour is what only a connection has that was moved, or is to end. Others
// share one that has nothing, and is never written to.
type detour struct {
	unread  []byte // comes before what the kernel has
	grace   time.Duration
	lingers time.Duration // after its last answer, if that is on the way
	play    *play         // while muted
	first   []byte        // of a connection of a live that keeps them: see proof.go
	stays   *mover        // has failed to, and is not to try again and again
	// Of a connection that another server had before: see continued.
	until time.Time     // the read deadline that it had set
	age   time.Duration // how long it had waited, if aged
	aged  bool
}

var straight detour

// ownDetour gives the track a detour of its own.
func (t *track) ownDetour() {
	if t.detour == &straight {
		t.detour = new(detour)
	}
}

// begin fills the track and adds it to those of l.
func (t *track) begin(c net.Conn, l *listener, unread []byte, old *track, stays *mover) {
	t.l, t.inner, t.custom, t.detour = l, c, l.custom, &straight
	if len(unread) > 0 || stays != nil {
		t.detour = &detour{unread: unread, stays: stays}
	}
	l.live.add(t, old)
}

// trackOf finds the track under c, if it is ours and nobody but TLS wrapped it.
func trackOf(c net.Conn) *track {
	for {
		switch v := c.(type) {
		case *tcpConn:
			return &v.track
		case *unixConn:
			return &v.track
		case *ruleConn:
			return &v.track
		case interface{ NetConn() net.Conn }:
			c = v.NetConn()
		default:
			return nil
		}
	}
}

// read is Read on the inner connection.
func (t *track) read(p []byte) (int, error) {
	size := int32(min(len(p), math.MaxInt32))
	for {
		t.mu.Lock()
		if n, ok, err := t.beforeRead(p, size); ok {
			return n, err
		}
		t.mu.Unlock()
		n, err := t.inner.Read(p)
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

// beforeRead is what a Read does before it comes to the inner connection. If ok,
// it does not, and t.mu is not held any more.
func (t *track) beforeRead(p []byte, size int32) (n int, ok bool, err error) {
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
		if t.phase != phaseBusy { // a body is also read past the server's buffer, in larger slices
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

// takeUnread gives bytes that came along. t.mu is held.
func (t *track) takeUnread(p []byte) int {
	n := copy(p, t.unread)
	t.unread = t.unread[n:]
	t.touched, t.begun = true, true
	t.cap()
	return n
}

// afterRead is what a Read does once it comes back: take back a deadline that
// was ours, or leave. Bytes that have come win over the wish to move.
func (t *track) afterRead(n int, offered int32, err error) (again bool, _ error) {
	t.offered = 0
	t.reading--
	woken := t.woken
	if woken {
		t.woken, t.capped = false, false
		if n == 0 && t.bound() > 0 { // not moved after all
			t.cap()
		} else {
			t.limit(t.want)
		}
	}
	if n > 0 {
		t.touched, t.begun, t.told = true, true, false
		if t.capped || t.mover != nil {
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
	return t.want.IsZero() || time.Now().Before(t.want), err
}

// fullSlice is how large a slice the server of net/http offers when its buffer
// is empty: that of a bufio.Reader. A larger one that was seen counts instead.
var fullSlice = int32(bufio.NewReader(nil).Size())

// mayLeave says whether nothing of the next request is in the server's hands,
// if its Read was offered this many bytes: nothing was read at all yet, or the
// server has said that it is idle, no request has begun since, and its buffer,
// all of it, is free.
func (t *track) mayLeave(offered int32) bool {
	if t.mover == nil && !t.ending || len(t.unread) > 0 || t.closed {
		return false
	}
	if t.phase == phaseOther {
		return !t.told
	}
	if !t.direct || t.mover == nil {
		return false
	}
	return t.phase == phaseNew && !t.touched ||
		t.phase == phaseIdle && !t.begun && offered >= max(t.full, fullSlice)
}

// mustLeave is the error with which a Read returns so that the connection can
// move: the server of net/http takes it for a timeout and closes, and our Close
// moves; a server of the user's calls Move.
func (t *track) mustLeave(offered int32) error {
	switch {
	case t.leaving:
		return os.ErrDeadlineExceeded
	case !t.mayLeave(offered):
		return nil
	case t.phase == phaseOther:
		t.told = true
		return ErrMove
	}
	t.leaving = true
	return os.ErrDeadlineExceeded
}

// offer gives the connection a mover: it is moved at once if it may, or as soon
// as it may. With nil the move is called off. False if it stays.
func (t *track) offer(m *mover) bool { return t.release(m, false) }

// release is offer, or tells the connection that the process ends and that
// nobody takes it.
func (t *track) release(m *mover, ending bool) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if m != nil && t.stays == m {
		return false
	}
	t.mover, t.ending = m, ending
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

// mayBlock says whether the program may have had the descriptor in its hands, and
// made it a blocking one: File does, for one.
func (t *track) mayBlock() bool { return (t.custom || t.bare) && !t.away }

// setKnown says that a server of net/http has the connection; direct, that this
// is what it has, and no wrapper.
func (t *track) setKnown(direct bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.known, t.direct = true, direct
}

func (t *track) isDirect() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.direct && t.phase != phaseHTTP2 && t.phase != phaseHijacked
}

// movable says whether it will move when it may.
func (t *track) movable() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.mover != nil && t.direct && t.phase != phaseHTTP2 && t.phase != phaseHijacked
}

// customize: the program may set options of the socket.
func (t *track) customize() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.custom = true
}

// expose is customize, and the program may read from the socket itself.
func (t *track) expose() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.custom = true
	t.setBare()
}

// bypass: bytes are read without us from now on. Those that we have come first.
func (t *track) bypass(w io.Writer) (int64, error) {
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

// setPhase is what the server tells.
func (t *track) setPhase(p phase) {
	t.mu.Lock()
	switch {
	case t.phase == phaseHTTP2 && p != phaseHijacked || t.phase == phaseHijacked:
		// net/http calls HTTP/2 connections idle as well.
	case p == phaseIdle: // the server sets its deadline next
		t.phase, t.begun, t.waiting = p, false, false
	default:
		t.phase, t.post = p, false
		if !t.muted && !t.until.IsZero() { // the wait of which it is the end is over
			t.until = time.Time{}
		}
		t.uncap()
	}
	t.mu.Unlock()
}
