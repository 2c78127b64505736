package sockets

import (
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// A Track is what a listener knows of one connection: how far it is on its way
// out (life), what was read and asked (request), which deadlines it has (deadline)
// and where it comes from (origin). With its TCPConn it fills two lines of the
// processor's cache.
//
// mu guards all of it but Listener and Inner, which are set before the connection
// is given out, place, muted and below.
type Track struct {
	Listener *Listener
	Inner    net.Conn

	mu sync.Mutex
	request
	life life
	origin
	ending bool          // the process ends, and no process takes the connection: a Read returns ErrMove all the same. Never with a Mover
	place  int32         // in Listener.Live, from 1; 0 if it is not there. Live.mu guards it
	below  atomic.Uint32 // noTLS, openTLS or shutTLS
	deadline

	Mover *Mover // takes it to the new process as soon as it may move
	*Detour
}

// A life is how far a connection is on its way out. None is left for one before
// it, except lifeMoving for lifeOpen: a mover may refuse what Move offers.
type life uint8

const (
	lifeOpen life = iota
	// lifeLeaving: nothing is buffered, and a Read has returned so that a server of
	// net/http closes the connection. Close moves it then. Not in PhaseOther, where
	// told is set instead.
	lifeLeaving
	// lifeClosed: Close was called, and closes the descriptor.
	lifeClosed
	// lifeMoving: Close or Move has given the connection to the mover, or Close to
	// TakeBack. Only they use the descriptor: it may be closed, or be another
	// Track's.
	lifeMoving
)

// isOver reports whether Close was called, or Move.
func (l life) isOver() bool { return l >= lifeClosed }

// isOpen reports whether Close is to close the connection, and not to move it.
func (l life) isOpen() bool { return l == lifeOpen || l == lifeClosed }

// A request is what is known of the request that is read or answered, and of the
// Reads that are pending.
type request struct {
	phase    phase
	progress progress
	told     bool // a Read has returned ErrMove, and neither a byte nor another Offer or Release has come since. Only in PhaseOther
	post     bool // the request that is answered, or was last, is a POST
	// muted: what is written is the answer to the prelude. Write looks at it without
	// mu, for only the goroutine that writes changes it. Not in lifeLeaving.
	muted   bool
	reading int32 // how many Reads are pending
	offered int32 // to the Read that is pending; 0 if none is
	full    int32 // the largest slice that a Read was offered between two requests
}

// A phase is the state of a connection as the server reports it.
type phase uint8

const (
	phaseNew      phase = iota // accepted; no request yet
	PhaseBusy                  // a request is read or answered
	PhaseIdle                  // answered; the next request may come
	PhaseHTTP2                 // any number of requests at once; only PhaseHijacked follows
	PhaseHijacked              // not the server's any more; nothing follows
	PhaseOther                 // of a Server with a Protocol of its own, from its beginning to its end
)

// A progress is what was read of the request that comes, or is answered.
type progress uint8

const (
	// progressNone: no byte was read since the connection was accepted.
	progressNone progress = iota
	// progressAwaited: no byte was read since the connection became idle, or all that
	// were read were no request.
	progressAwaited
	// progressTimed: the same, and the server has set the deadline of the time in
	// which it is idle. Only in PhaseIdle.
	progressTimed
	// progressBegun: a byte was read, or the server has set one more deadline: then
	// the bytes were in its buffer already.
	progressBegun
)

// A deadline is what is known of the deadlines of a connection: see deadline.go
// and idle.go.
type deadline struct {
	flags deadlineFlags
	Want  time.Time // the read deadline that the server has set
}

// The deadlineFlags tell how the deadlines of Inner differ from those that the
// server has set. Any of them may be set together, except as the comments say.
// They have 32 bits since that fits, and one instruction of amd64 changes them.
type deadlineFlags uint32

const (
	// deadlinePending: Want is not set on Inner yet; the next Read that needs it sets
	// it. Not while a Read is pending. With deadlineBounded or deadlineExposed only
	// if it was set during the prelude.
	deadlinePending deadlineFlags = 1 << iota
	// deadlineOnRead: Inner has a read deadline.
	deadlineOnRead
	// deadlineOnWrite: Inner may have a write deadline.
	deadlineOnWrite
	// deadlineBounded: the read deadline of Inner is not Want but what bound allows,
	// unless deadlineWakes has come after it.
	deadlineBounded
	// deadlineWakes: the read deadline of Inner is in the past, so that the pending
	// Read returns and the connection moves. When the Read comes back it clears this
	// and deadlineBounded.
	deadlineWakes
	// deadlineExposed: the program may use Inner itself, so each deadline is set on
	// it at once. Never cleared.
	deadlineExposed
)

// has reports whether any of f is set. Code that Read reaches has the expression
// in its place where the call would keep a function from being inlined.
func (d *deadline) has(f deadlineFlags) bool { return d.flags&f != 0 }
func (d *deadline) set(f deadlineFlags)      { d.flags |= f }
func (d *deadline) clear(f deadlineFlags)    { d.flags &^= f }

// An origin is where a connection comes from, and what else has a hold of it.
type origin struct {
	source source
	flags  originFlags
}

// A source is where a server has a connection from.
type source uint8

const (
	sourceAccept source = iota // from the kernel
	sourceFresh                // from another server, to which no request had come
	sourceIdle                 // from another server, between two requests
)

// The originFlags are independent of each other, except that originDirect is set
// with originKnown only.
type originFlags uint8

const (
	// originCustom: its options may not be those of a new connection.
	originCustom originFlags = 1 << iota
	// originShared: the new process may still hold a duplicate descriptor; it has
	// not yet read that this process keeps the connection. Set before the connection
	// is given out.
	originShared
	// originKnown: a server of net/http reports its phase.
	originKnown
	// originDirect: that server has the connection itself, not a wrapper of it.
	originDirect
	// originTLS: TLS is spoken over it.
	originTLS
)

func (o *origin) has(f originFlags) bool { return o.flags&f != 0 }
func (o *origin) set(f originFlags)      { o.flags |= f }
func (o *origin) clear(f originFlags)    { o.flags &^= f }

// A Detour has the fields that only moved or draining connections need; all
// others share a read-only zero value, noDetour.
type Detour struct {
	unread  []byte // comes before what the kernel has
	grace   time.Duration
	rest    time.Time     // until when it may wait for a request, if that is later than grace
	tls     *TLSConn      // above it
	lingers time.Duration // after its last answer, if that is on the way
	play    *play         // while muted
	First   []byte        // of a connection of a live that keeps them: see proof.go
	stays   *Mover        // has failed to move it, and is not to try again and again
	// Of a connection that another server had before: see continued.
	until time.Time     // the read deadline that it had set
	age   time.Duration // how long it had waited, if aged
	aged  bool
}

var noDetour Detour

// ownDetour gives the track a detour of its own.
func (t *Track) ownDetour() {
	if t.Detour == &noDetour {
		t.Detour = new(Detour)
	}
}

// describe names the connection for the log.
func (t *Track) describe() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	what := "in a request"
	switch {
	case t.phase == PhaseHTTP2:
		what = "HTTP/2"
	case t.phase == PhaseHijacked:
		what = "hijacked"
	case t.phase == PhaseOther:
		what = "open"
	case t.phase == PhaseIdle || t.phase == phaseNew:
		what = "idle, and can't move"
	}
	if t.progress == progressBegun && what == "idle, and can't move" {
		what = "in a request's header"
	}
	return t.Inner.RemoteAddr().String() + " (" + what + ")"
}

// begin fills the track and adds it to those of l.
func (t *Track) begin(c net.Conn, l *Listener, unread []byte, old *Track, stays *Mover) {
	t.Listener, t.Inner, t.Detour = l, c, &noDetour
	if l.custom {
		t.origin.set(originCustom)
	}
	if len(unread) > 0 || stays != nil {
		t.Detour = &Detour{unread: unread, stays: stays}
	}
	l.Live.add(t, old)
}
