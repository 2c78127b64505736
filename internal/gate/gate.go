// Package gate shuts and opens the Accepts and reads of a socket while goroutines wait
// in them. The socket itself stays open, and with it the kernel's queue, in this process
// and in every other that has a copy.
package gate

import (
	"errors"
	"net"
	"os"
	"sync"
	"time"
)

// A Mode says what a gate lets through.
type Mode int

const (
	Shut      Mode = iota // nothing: not ready yet, or handed over
	Open                  // everything
	Finishing             // what is queued, and then it is shut or parked
	Parked                // nothing, as if closed; it may be opened again
	Closed                // nothing, for good
)

// A Deadliner is a socket, as a gate sees it.
type Deadliner interface{ SetDeadline(time.Time) error }

// A Gate stands before the Accepts of a listener, or the reads of a packet conn. When it
// shuts while a call is inside, a deadline in the past unblocks the call, which then
// waits at the gate. All methods may be called from several goroutines at once.
//
// mu guards all fields below it. No function that is given to the gate is called with mu
// held, but setDeadline of New and Replace, which must not call back. A caller that
// holds locks of its own must not take them in a function given to Watch.
type Gate struct {
	setInner func(time.Time) error
	// Unblock interrupts a system call that no deadline reaches, and reports whether
	// it can. It is set before the gate is used, and must not call the gate.
	Unblock func() bool

	mu       sync.Mutex // guards the following
	mode     Mode
	changed  chan struct{} // closed at each change of mode, deadline or injected
	deadline time.Time     // that the program has set
	kicked   bool          // the inner deadline is the gate's, in the past
	kicks    int           // how often kicked has become true
	freeing  bool          // free runs, or is about to
	inside   int           // calls that have entered, and not left yet
	injected int           // calls that pass whatever the mode: see Inject
	reserved int           // injections that may still come
	watchers []func()      // called after a change of mode, and when a call has left
}

// LongAgo is a deadline in the past.
var LongAgo = time.Unix(1, 0)

// New gives a gate that is shut. setDeadline sets the deadline of the socket's calls.
func New(setDeadline func(time.Time) error) *Gate {
	return &Gate{setInner: setDeadline, changed: make(chan struct{})}
}

// Set changes the mode. A closed gate stays closed.
func (g *Gate) Set(m Mode) { g.Change(func(Mode) bool { return true }, m) }

// Swap changes the mode from one to another, and reports whether it did.
func (g *Gate) Swap(from, to Mode) bool {
	return g.Change(func(m Mode) bool { return m == from }, to)
}

// Change changes the mode if allowed reports that it may, given the mode so far. It
// reports whether it did.
func (g *Gate) Change(allowed func(Mode) bool, to Mode) bool {
	g.mu.Lock()
	if g.mode == to || g.mode == Closed || !allowed(g.mode) {
		g.mu.Unlock()
		return false
	}
	g.mode = to
	g.kick()
	watchers := g.watchers
	g.mu.Unlock()
	for _, f := range watchers {
		f()
	}
	return true
}

// Inject lets n calls pass whatever the mode, for connections that did not come from
// the socket. With n below zero it says that they have passed.
func (g *Gate) Inject(n int) {
	g.mu.Lock()
	g.injected += n
	if n > 0 && g.mode != Closed {
		g.kick()
	}
	var watchers []func()
	if g.mode == Parked { // no call waits there
		watchers = g.watchers
	}
	g.mu.Unlock()
	for _, f := range watchers {
		f()
	}
}

// HasInjected reports whether calls are still to pass that Inject has let through.
func (g *Gate) HasInjected() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.injected > 0
}

// Reserve announces an injection that may come, and reports whether the gate is open
// for that. Until Unreserve is called the gate is neither quiet nor parked.
func (g *Gate) Reserve() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.mode != Open {
		return false
	}
	g.reserved++
	return true
}

// Unreserve says that an injection that was announced has come, or will not.
func (g *Gate) Unreserve() {
	g.mu.Lock()
	g.reserved--
	if g.reserved == 0 && g.mode == Finishing {
		g.kick() // a call that waits for the queue to be empty looks again
	}
	watchers := g.watchers
	g.mu.Unlock()
	for _, f := range watchers {
		f()
	}
}

// Park ends Finishing with the mode to, unless an injection waits or is announced. It
// reports whether it did.
func (g *Gate) Park(to Mode) bool {
	return g.Change(func(m Mode) bool { return m == Finishing && g.injected == 0 && g.reserved == 0 }, to)
}

// IsOccupied reports whether a call is inside.
func (g *Gate) IsOccupied() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.inside > 0
}

// IsOpen reports whether the mode is Open.
func (g *Gate) IsOpen() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.mode == Open
}

// IsShut reports whether the mode is Shut.
func (g *Gate) IsShut() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.mode == Shut
}

// IsParked reports whether the mode is Parked.
func (g *Gate) IsParked() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.mode == Parked
}

// IsClosed reports whether the mode is Closed.
func (g *Gate) IsClosed() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.mode == Closed
}

// kick makes every call that waits look at the gate again. g.mu is held.
func (g *Gate) kick() {
	if g.inside > 0 { // a call that enters later has seen the gate as it is now
		g.kickInner()
	}
	close(g.changed)
	g.changed = make(chan struct{})
}

// kickInner unblocks the calls inside. A system call that has begun before, or begins
// right now, is not: one accept(2) that was on its way takes one connection, on each
// listener, also when the gate is shut already; one that blocks is freed.
func (g *Gate) kickInner() {
	if !g.kicked {
		g.kicked = true
		g.kicks++
	}
	g.setInner(LongAgo)
	if g.Unblock != nil && !g.freeing {
		g.freeing = true
		kicks := g.kicks
		time.AfterFunc(FreeAfter, func() { g.free(kicks) })
	}
}

// FreeAfter is how long a call that was unblocked may take to leave, before it is
// thought to be in a system call that blocks.
const FreeAfter = 10 * time.Millisecond

// free interrupts the system calls that block: those that have not come back since
// that many kicks, or since later ones.
func (g *Gate) free(kicks int) {
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		g.mu.Lock()
		held, same := g.kicked && g.inside > 0, g.kicks == kicks
		kicks, g.freeing = g.kicks, held
		g.mu.Unlock()
		if !held || same && !g.Unblock() {
			return // where there is no way to, the next connection or packet does it
		}
		time.Sleep(wait)
	}
}

// SetDeadline is the program's SetDeadline.
func (g *Gate) SetDeadline(t time.Time) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.deadline = t
	close(g.changed)
	g.changed = make(chan struct{})
	if g.kicked {
		return nil // Enter sets it
	}
	return g.setInner(t)
}

// Enter waits until a call may pass, and gives the mode in which it does, and whether
// it passes because of Inject. Leave must follow. Errors: net.ErrClosed if the gate is
// closed or parked, os.ErrDeadlineExceeded.
func (g *Gate) Enter() (m Mode, injected bool, err error) {
	for {
		g.mu.Lock()
		mode, changed, deadline := g.mode, g.changed, g.deadline
		switch {
		case mode == Closed:
			g.mu.Unlock()
			return mode, false, net.ErrClosed
		case mode == Parked:
			g.mu.Unlock()
			return mode, false, net.ErrClosed
		case g.injected > 0:
			g.inside++
			g.mu.Unlock()
			return mode, true, nil
		case mode == Open || mode == Finishing:
			if g.kicked {
				g.kicked = false
				g.setInner(deadline)
			}
			g.inside++
			g.mu.Unlock()
			return mode, false, nil
		}
		g.mu.Unlock()
		if deadline.IsZero() {
			<-changed
			continue
		}
		t := time.NewTimer(time.Until(deadline))
		select {
		case <-changed:
			t.Stop()
		case <-t.C:
			return mode, false, os.ErrDeadlineExceeded
		}
	}
}

// Leave ends what Enter has begun, once what the call took is accounted for.
func (g *Gate) Leave() {
	g.mu.Lock()
	g.inside--
	watchers := g.watchers
	g.mu.Unlock()
	for _, f := range watchers {
		f()
	}
}

// IsQuiet reports whether nothing more comes through, unless the gate is opened again.
func (g *Gate) IsQuiet() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.inside == 0 && g.injected == 0 && g.reserved == 0 && g.mode != Open && g.mode != Finishing
}

// IsFinishing reports whether what is queued still passes, and no call takes it now.
func (g *Gate) IsFinishing() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.mode == Finishing && g.inside == 0
}

// MayRetry reports whether err, of a call that was inside, came from the gate and not
// from the program's deadline; or from the end of a socket that will be replaced.
func (g *Gate) MayRetry(err error) bool {
	closed := errors.Is(err, net.ErrClosed)
	if !closed && !errors.Is(err, os.ErrDeadlineExceeded) {
		return false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if closed {
		return g.mode == Shut
	}
	return g.deadline.IsZero() || time.Now().Before(g.deadline)
}

// Pass calls read, again and again, until it returns something that is not the gate's
// doing.
func (g *Gate) Pass(read func() error) error {
	for {
		if _, _, err := g.Enter(); err != nil {
			return err
		}
		err := read()
		g.Leave()
		if err == nil || !g.MayRetry(err) {
			return err
		}
	}
}

// Replace puts the gate before another socket.
func (g *Gate) Replace(setDeadline func(time.Time) error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.setInner = setDeadline
	g.kickInner()
}

// Watch has f called whenever IsQuiet may have become true.
func (g *Gate) Watch(f func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.watchers = append(g.watchers, f)
}
