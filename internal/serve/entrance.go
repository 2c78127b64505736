package serve

import (
	"net"
	"sync"
	"sync/atomic"

	"github.com/julofinance/grace/v3/internal/sockets"
)

// A server closes its listener when it ends, and net/http, gRPC and others end
// each time that they are told to drain. But a listener that wraps ours may not
// live on after Close, or after an Accept that has failed, and a roll back needs
// it again: golang.org/x/net's netutil.LimitListener accepts and closes every
// connection from then on, and a cmux is over. So while a roll back is possible
// the user's listener is not closed: it is closed once, at the end.

// A turn is a listener of ours, as one call of Serve gets it. Once that was closed it accepts
// nothing, and closes nothing: Serve may be called again before the former call has noticed,
// and a server that was shut down closes what it is given.
type turn struct {
	*sockets.Listener
	over  atomic.Bool
	asked atomic.Bool // Accept was called
}

func (t *turn) isAsked() bool { return t.asked.Load() }

func (t *turn) Accept() (net.Conn, error) {
	t.asked.Store(true)
	if t.over.Load() {
		return nil, t.ended()
	}
	c, err := t.Listener.Accept()
	if err == nil && t.over.Load() { // for the next turn
		t.Give(c)
		return nil, t.ended()
	}
	return c, err
}

func (t *turn) ended() error {
	return &net.OpError{Op: "accept", Net: t.Addr().Network(), Addr: t.Addr(), Err: net.ErrClosed}
}

// Close closes the listener as long as it is this call's turn.
func (t *turn) Close() error {
	if t.over.Load() {
		return nil
	}
	return t.Listener.Close()
}

// A hall accepts from a user's listener in a goroutine of its own, so that an
// Accept of an entrance to it can be made to return without any call of the
// listener.
type hall struct {
	net.Listener               // the user's
	done         chan struct{} // closed at the end
	out          chan arrived

	begin sync.Once
	n     atomic.Int32 // which entrance is open: an earlier one's errors are not for it
	holds atomic.Int32 // connections that were accepted, and that no Accept has returned yet
	check func()       // called when holds has changed
}

type arrived struct {
	conn net.Conn
	err  error
	n    int32
}

func newHall(ln net.Listener, check func()) *hall {
	return &hall{Listener: ln, done: make(chan struct{}), out: make(chan arrived), check: check}
}

func (h *hall) run() {
	for {
		n := h.n.Load()
		c, err := h.Listener.Accept()
		if err == nil {
			h.holds.Add(1)
			h.check()
		}
		if !h.pass(arrived{c, err, n}) {
			return
		}
	}
}

// pass waits until an entrance takes a; false if it is the end.
func (h *hall) pass(a arrived) bool {
	select {
	case h.out <- a:
		return true
	case <-h.done:
		if a.conn != nil {
			a.conn.Close()
			h.holds.Add(-1)
		}
		return false
	}
}

// end closes the user's listener.
func (h *hall) end() {
	close(h.done)
	h.Listener.Close()
}

// An entrance is what one call of a server's Serve gets.
type entrance struct {
	net.Listener               // the user's
	hall         *hall         // nil if the listener is ours itself
	n            int32         // of this entrance
	closed       chan struct{} // by Close
	once         sync.Once
	onClose      func()
	asked        atomic.Bool // Accept was called
}

func (e *entrance) isAsked() bool { return e.asked.Load() }

// open opens the next entrance to the hall. The one before gives nothing any
// more. The hall accepts nothing before the first Accept of an entrance: a Serve
// that has its listener from elsewhere, as a cmux made before, is to lose no
// connection to the hall.
func (h *hall) open(onClose func()) *entrance {
	return &entrance{Listener: h.Listener, hall: h, n: h.n.Add(1), closed: make(chan struct{}), onClose: onClose}
}

func (e *entrance) Accept() (net.Conn, error) {
	e.asked.Store(true)
	e.hall.begin.Do(func() { go e.hall.run() })
	var failed error
	for {
		if failed != nil && e.hall.holds.Load() == 0 {
			return nil, failed
		}
		select {
		case <-e.closed:
			return nil, net.ErrClosed
		case <-e.hall.done:
			return nil, net.ErrClosed
		case a := <-e.hall.out:
			if a.err != nil {
				if a.n == e.n { // what an entrance before has given back comes first
					failed = a.err
				}
				continue
			}
			select {
			case <-e.closed: // c is for the next entrance
				go e.hall.pass(a)
				return nil, net.ErrClosed
			default:
			}
			e.hall.holds.Add(-1)
			e.hall.check()
			return a.conn, nil
		}
	}
}

func (e *entrance) Close() error {
	e.once.Do(func() {
		close(e.closed)
		e.onClose()
	})
	return nil
}
