package grace

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"time"

	"github.com/julofinance/grace/v3/internal/inorder"
)

// What a process tells the program of its upgrades: for metrics, and for work that must
// stop or go on at a hand-over.

// An EventKind is what has happened. Later versions may have more kinds.
type EventKind int

// The kinds of events. Each event of an upgrade is delivered in the old process or in the
// new one, not in both.
const (
	// EventReady: this process serves. Peer is the pid of the old process, or 0 in a first
	// process.
	EventReady EventKind = iota + 1
	// EventAlone: the old process, Peer, is gone or lingers, or has finished and does not
	// exit in time; this process, the new one, may be upgraded itself.
	EventAlone
	// EventAsked: an upgrade was asked for, by a signal or by Upgrade. Several requests
	// that wait are one upgrade.
	EventAsked
	// EventRefused: no process was started for it. Err says why.
	EventRefused
	// EventStarted: the new process runs; Peer is its pid. If this process is told to stop
	// then, no other event of the upgrade may follow.
	EventStarted
	// EventPaused: this process accepts nothing, and finishes what it has begun, so that
	// the new process, Peer, can have the Exclusive state. EventHandedOver follows, or
	// EventFailed or EventRolledBack.
	EventPaused
	// EventHandedOver: the new process, Peer, accepts; this process has stopped accepting,
	// and stands by. Took is the time since the new process was started.
	EventHandedOver
	// EventSick: the new process, Peer, is not well, and is killed; Err says what is wrong,
	// such as the error of a HealthCheck. EventRolledBack follows, with ErrUnhealthy.
	EventSick
	// EventRolledBack: the new process, Peer, was ready and is dead or gives up; this process
	// accepts again, and what a drain has stopped may go on. Err is an *UpgradeError.
	EventRolledBack
	// EventFailed: the new process was never ready, and this one goes on as before; Err is
	// an *UpgradeError, Peer its pid or 0. In the new process itself: Ready has failed, with
	// Err.
	EventFailed
	// EventLameDuck: the service is to stop, and accepts still, see LameDuck.
	EventLameDuck
	// EventDraining: this process finishes what it has begun. Peer is the new process, which
	// has taken over, or 0: the service ends. A drain that Peer has caused may be rolled back.
	EventDraining
	// EventLingering: only long streams are left, and this process goes on with them by
	// itself, see Linger; Peer is the new process, which may be upgraded. EventDrained
	// follows.
	EventLingering
	// EventDrained: nothing is left. Took is how long it has taken; Moved, Finished,
	// Waited and Cut count connections.
	EventDrained
	// EventStopped: the last event before Done is closed.
	EventStopped
)

var eventNames = [...]string{
	EventReady: "ready", EventAlone: "alone", EventAsked: "asked", EventRefused: "refused",
	EventStarted: "started", EventPaused: "paused", EventHandedOver: "handed over", EventSick: "sick",
	EventRolledBack: "rolled back", EventFailed: "failed", EventLameDuck: "lame duck", EventDraining: "draining",
	EventLingering: "lingering", EventDrained: "drained", EventStopped: "stopped",
}

// String returns the kind in lower case, such as "handed over".
func (k EventKind) String() string {
	if k > 0 && int(k) < len(eventNames) {
		return eventNames[k]
	}
	return "unknown"
}

// An Event is one step of a process's life. What a kind has no use for is zero.
type Event struct {
	Kind       EventKind
	Time       time.Time
	Pid        int // of this process
	Generation int // of this process, see [Upgrader.Generation]
	Peer       int // pid of the other process of the upgrade
	Took       time.Duration
	Err        error

	// Connections, of EventDrained: how many were moved to the new process, have ended,
	// were waited for since they were hijacked, and were cut off.
	Moved, Finished, Waited, Cut int
}

// Events gives a function that is called with each [Event], in order, one at a time, by a
// goroutine of its own: it holds up nothing. Done is closed, and a Ready that has failed
// returns, when it has had all events up to then, or has taken more than 5 seconds for
// that: a function that returns misses none. It must not wait for the end of this process.
// One that panics is called with the next event all the same.
func Events(f func(Event)) Option {
	return func(o *options) error { o.events = f; return nil }
}

// emit queues an event for the program.
func (u *Upgrader) emit(e Event) {
	if u.word == nil {
		return
	}
	e.Time, e.Pid, e.Generation = time.Now(), os.Getpid(), u.generation
	u.word.Add(e)
}

// newWord gives the queue of events; nil if the program wants none.
func newWord(o *options) *inorder.Queue[Event] {
	if o.events == nil {
		return nil
	}
	return inorder.New(o.events, func(p any) {
		o.log.Error("grace: a function that was given as an option has panicked", "option", "Events", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
	})
}

// flushEvents waits until the program has had all events, for a time.
func (u *Upgrader) flushEvents() {
	if u.word != nil {
		u.word.Flush(endPatience)
	}
}

// eventOf gives the event that a notice stands for; one without a Kind if it stands for
// none. Like say it runs in the goroutine that owns the state, or when that has ended.
func (p performer) eventOf(n notice, err error) Event {
	u := p.u
	e := Event{Err: err}
	var failure *UpgradeError
	if errors.As(err, &failure) {
		e.Peer = failure.Pid
	}
	switch n {
	case noticeServing:
		e.Kind = EventReady
		if u.parent != nil {
			e.Peer = u.parent.m.Pid
		}
	case noticeParentGone, noticeParentStuck, noticeParentLingers:
		if u.alone {
			return Event{}
		}
		u.alone = true
		e.Kind, e.Peer = EventAlone, u.parent.m.Pid
	case noticeAsked:
		e.Kind = EventAsked
	case noticeUnsupported:
		e.Kind, e.Err = EventRefused, ErrNotSupported
	case noticeTooLate:
		e.Kind, e.Err = EventRefused, ErrStopped
	case noticeMasterRefused:
		e.Kind = EventRefused
	case noticeStarted:
		e.Kind, e.Peer = EventStarted, u.m.child.pid
	case noticeReleasing:
		e.Kind, e.Peer = EventPaused, u.m.child.pid
	case noticeStandingBy, noticeHeirServes:
		e.Kind, e.Peer, e.Took = EventHandedOver, u.m.child.pid, time.Since(u.child.launched)
	case noticeSick:
		e.Kind, e.Peer = EventSick, u.m.child.pid
	case noticeFailed:
		e.Kind = EventFailed
		if errors.Is(err, ErrRefused) {
			e.Kind = EventRefused
		}
	case noticeRolledBack:
		e.Kind = EventRolledBack
	case noticeLingering:
		e.Kind, e.Peer = EventLingering, u.m.child.pid
	case noticeDrained:
		d := u.drain
		e = Event{Kind: EventDrained, Took: d.Took(), Waited: d.Report.Waited, Cut: d.Report.Cut}
		e.Moved, e.Finished = d.Moved()
	default:
		return Event{}
	}
	return e
}
