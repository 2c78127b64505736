package grace

import (
	"errors"
	"net"
	"os"
	"sync"
	"time"
)

type gateMode int

const (
	gateShut      gateMode = iota // nobody passes: not ready yet, or handed over
	gateOpen                      // Accept and Read work
	gateFinishing                 // what is queued still passes, then it is shut or parked
	gateParked                    // as if closed; may be opened again
	gateClosed
)

type deadliner interface{ SetDeadline(time.Time) error }

// A gate stands before Accept, or before the reads of a packet conn. It can be
// shut and opened again while somebody waits inside: a deadline in the past
// wakes him, and he waits at the gate instead. The socket stays open, so its
// queue is kept, in this process and in every other that has it.
type gate struct {
	setInner func(time.Time) error
	// unblock gets out of a system call whom no deadline reaches, and says whether
	// it can; see socket.unblock. It does not take mu.
	unblock func() bool

	mu       sync.Mutex
	mode     gateMode
	changed  chan struct{} // closed at each change of mode, deadline or errand
	deadline time.Time     // the user's own
	kicked   bool          // the inner deadline is ours, in the past
	kicks    int           // how often kicked has become true
	freeing  bool          // free runs, or is about to
	inside   int           // who has entered and not left yet
	errands  int           // how many must pass even if it is shut: see listener.give
	expected int           // how many errands another process has yet to decide about
	watchers []func()      // called when the mode changed, or somebody left
}

var longAgo = time.Unix(1, 0)

func newGate(setDeadline func(time.Time) error) *gate {
	return &gate{setInner: setDeadline, changed: make(chan struct{})}
}

// set changes the mode. A closed gate stays closed.
func (g *gate) set(m gateMode) { g.change(func(gateMode) bool { return true }, m) }

// swap changes the mode from one to another; false if it was a third.
func (g *gate) swap(from, to gateMode) bool {
	return g.change(func(m gateMode) bool { return m == from }, to)
}

func (g *gate) change(allowed func(gateMode) bool, to gateMode) bool {
	g.mu.Lock()
	if g.mode == to || g.mode == gateClosed || !allowed(g.mode) {
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

// errand lets somebody pass, whatever the mode, or says that he has.
func (g *gate) errand(n int) {
	g.mu.Lock()
	g.errands += n
	if n > 0 && g.mode != gateClosed {
		g.kick()
	}
	var watchers []func()
	if g.mode == gateParked { // nobody is there
		watchers = g.watchers
	}
	g.mu.Unlock()
	for _, f := range watchers {
		f()
	}
}

func (g *gate) hasErrand() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.errands > 0
}

// expect says that an errand may come; false if the gate is not open. Until
// settled is called it is not quiet, nor parked.
func (g *gate) expect() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.mode != gateOpen {
		return false
	}
	g.expected++
	return true
}

// settled says that an errand that was expected has come, or will not.
func (g *gate) settled() {
	g.mu.Lock()
	g.expected--
	if g.expected == 0 && g.mode == gateFinishing {
		g.kick() // who waits for the queue to be empty looks again
	}
	watchers := g.watchers
	g.mu.Unlock()
	for _, f := range watchers {
		f()
	}
}

// park ends finishing, unless an errand waits or is expected.
func (g *gate) park(to gateMode) bool {
	return g.change(func(m gateMode) bool { return m == gateFinishing && g.errands == 0 && g.expected == 0 }, to)
}

func (g *gate) isOccupied() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.inside > 0
}

func (g *gate) isOpen() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.mode == gateOpen
}

func (g *gate) isShut() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.mode == gateShut
}

func (g *gate) isParked() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.mode == gateParked
}

func (g *gate) isClosed() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.mode == gateClosed
}

// kick makes everybody look at the gate again. g.mu is held.
func (g *gate) kick() {
	if g.inside > 0 { // who comes in later has seen the gate as it is now
		g.kickInner()
	}
	close(g.changed)
	g.changed = make(chan struct{})
}

// kickInner wakes who is inside. A system call that has begun before, or begins
// right now, is not woken: one accept(2) that was on its way takes one connection,
// on each listener, also when the gate is shut already; one that blocks is freed.
func (g *gate) kickInner() {
	if !g.kicked {
		g.kicked = true
		g.kicks++
	}
	g.setInner(longAgo)
	if g.unblock != nil && !g.freeing {
		g.freeing = true
		kicks := g.kicks
		time.AfterFunc(freeAfter, func() { g.free(kicks) })
	}
}

// freeAfter is how long who was kicked may take to come out before a system call
// that blocks is thought to hold him.
const freeAfter = 10 * time.Millisecond

// free gets out who was kicked and has not come: since the time of kicks, or later
// ones.
func (g *gate) free(kicks int) {
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		g.mu.Lock()
		held, same := g.kicked && g.inside > 0, g.kicks == kicks
		kicks, g.freeing = g.kicks, held
		g.mu.Unlock()
		if !held || same && !g.unblock() {
			return // where there is no way to free him, what comes next does
		}
		time.Sleep(wait)
	}
}

// setDeadline is the user's SetDeadline.
func (g *gate) setDeadline(t time.Time) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.deadline = t
	close(g.changed)
	g.changed = make(chan struct{})
	if g.kicked {
		return nil // enter sets it
	}
	return g.setInner(t)
}

// enter waits until somebody may pass, and says in which mode, and whether there
// is an errand.
func (g *gate) enter() (m gateMode, errand bool, err error) {
	for {
		g.mu.Lock()
		mode, changed, deadline := g.mode, g.changed, g.deadline
		switch {
		case mode == gateClosed:
			g.mu.Unlock()
			return mode, false, net.ErrClosed
		case mode == gateParked:
			g.mu.Unlock()
			return mode, false, net.ErrClosed
		case g.errands > 0:
			g.inside++
			g.mu.Unlock()
			return mode, true, nil
		case mode == gateOpen || mode == gateFinishing:
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

// leave is called by who has entered, once what he took is accounted for.
func (g *gate) leave() {
	g.mu.Lock()
	g.inside--
	watchers := g.watchers
	g.mu.Unlock()
	for _, f := range watchers {
		f()
	}
}

// isQuiet says whether nothing more comes through, unless it is opened again.
func (g *gate) isQuiet() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.inside == 0 && g.errands == 0 && g.expected == 0 && g.mode != gateOpen && g.mode != gateFinishing
}

// isFinishing says whether what is queued still passes, and nobody takes it now.
func (g *gate) isFinishing() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.mode == gateFinishing && g.inside == 0
}

// mayRetry says whether err came from a kick, not from the user's deadline, or
// from the end of a socket before which the gate is only shut.
func (g *gate) mayRetry(err error) bool {
	closed := errors.Is(err, net.ErrClosed)
	if !closed && !errors.Is(err, os.ErrDeadlineExceeded) {
		return false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if closed {
		return g.mode == gateShut
	}
	return g.deadline.IsZero() || time.Now().Before(g.deadline)
}

// pass calls read as often as the gate lets it.
func (g *gate) pass(read func() error) error {
	for {
		if _, _, err := g.enter(); err != nil {
			return err
		}
		err := read()
		g.leave()
		if err == nil || !g.mayRetry(err) {
			return err
		}
	}
}

// replace gives the gate another socket to stand before.
func (g *gate) replace(setDeadline func(time.Time) error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.setInner = setDeadline
	g.kickInner()
}

// watch lets f be called when isQuiet may have become true.
func (g *gate) watch(f func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.watchers = append(g.watchers, f)
}
