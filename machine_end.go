package grace

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"time"
)

// The state machine: stop, drain, and the end of a process.

// A stopRequest asks this process to end.
type stopRequest struct {
	signal   os.Signal // nil if it was not a signal
	at       time.Time // when it has arrived; zero is now
	now      bool      // cut off what is left at once
	passedOn bool      // the other process of a hand-over was told first
	leave    bool      // only this process is to end, not the service
	reason   string    // if it was neither a signal nor the program
}

// byOperator reports whether a second request of its kind makes the stop urgent:
// a signal, or the like. What the program asks for is urgent only if it says so,
// however often it asks: it may ask without hurry in several places, and for a
// signal that this process handles as well (signal.NotifyContext).
func (r *stopRequest) byOperator() bool { return r.signal != nil || r.reason != "" }

// passOnFor is how long after the hand-over a stop that reaches the old process
// is one of the service: its sender may have read the PID file a moment before
// the hand-over. Later it is meant for a process that takes too long to end.
const passOnFor = 10 * time.Second

func (m *machine) onStop(r stopRequest) {
	if r.at.IsZero() {
		r.at = m.now()
	}
	if !m.repeatedStop(r) {
		m.stopNow(r)
	}
}

// stopNow is onStop for a request that counts.
func (m *machine) stopNow(r stopRequest) {
	if m.concernsThisAlone(r) {
		m.endAlone(r)
		return
	}
	if m.state == releasing && (r.leave || m.child.went()) || m.state == standingBy && m.moving || m.rollsBackSoon() {
		m.postpone(r)
		return
	}
	if m.state == stopped {
		if r.signal != nil { // not a program's Shutdown on its way out: the child serves
			m.passStop(r)
		}
		return
	}
	if r.leave && m.stop == notStopping && m.state == upgrading && m.child.stage == going {
		// The child accepts at any moment, and reports then which sockets it has
		// taken: that decides which process removes the paths and serves the
		// queues. Or the child dies.
		m.leaveLater = true
		return
	}
	again := m.stopAsked && r.byOperator()
	m.stopAsked = m.stopAsked || r.byOperator() || r.passedOn
	if m.stop != notStopping {
		if r.leave {
			return
		}
		if m.underMaster && r.byOperator() {
			return // masters repeat it: to all that are not the newest, at each upgrade
		}
		r.now = r.now || again
		if !r.now && (r.passedOn || m.stop == stopService) { // both processes may get the same signal: it counts once
			if r.byOperator() {
				m.do.sayStop(noticeStopBegins, r)
			}
			return
		}
	}
	if r.byOperator() {
		m.do.sayStop(noticeStopBegins, r)
		m.answerAsked(slices.Clone(m.asked), nil) // how an upgrade by a master succeeds
	}
	handedOver := m.state == standingBy || m.state == draining || m.child.went() && m.child.stage != leaving && m.child.killReason == nil && m.state != acquiring
	if r.leave {
		m.stop = max(m.stop, stopLeave)
	} else {
		m.stop = stopService
	}
	m.do.stopping(!r.leave)
	if !r.leave {
		m.endLingerers(r.now)
	}
	if !r.leave && m.child.stage == preparing {
		m.kill(ErrStopped)
	}
	switch {
	case m.state == holding: // only the child is waited for
	case m.state == acquiring && r.now && m.hold == lent && m.child.unkillable: // it may have the exclusive state for ever
		m.refuseAll()
		m.hurried = m.drain != running
		if m.state = draining; m.hurried {
			m.beginDrain(false)
		}
	case m.state == resuming, m.state == acquiring, m.state == releasing: // the roll back is finished first
		m.refuseAll()
		m.hurried = m.hurried || r.now
	case m.state == draining: // it is under way already
	case handedOver:
		m.answer(nil)
		if m.state == upgrading { // it accepts at any moment
			m.do.leaveEnd()
		}
		m.beginDrain(r.leave) // else the child is to stop as well
	default:
		if r.leave && m.child.stage == preparing {
			m.leaveToChild()
		}
		m.refuseAll()
		if m.isToBeLame(r.now) {
			m.goLame()
		} else {
			m.beginLastDrain(r)
		}
	}
	if handedOver {
		m.do.letGo()
	}
	m.passStop(r)
	if r.now && m.drain == running {
		m.do.hurryDrain()
	}
	m.well()
}

// isToBeLame reports whether this process goes on accepting for a while though it was told
// to stop: load balancers hear of that late. Under a master the next process is there
// already.
func (m *machine) isToBeLame(now bool) bool {
	return m.limits.lame > 0 && (m.state == serving || m.state == upgrading) && m.stop == stopService && !now && !m.underMaster
}

func (m *machine) goLame() {
	m.state = lameDuck
	m.do.goLame()
	m.do.after(m.limits.lame, evLameOver{})
}

// repeatedStop reports whether r only repeats a stop that was asked for a moment
// before: see repeats. Without this, a supervisor that signals both processes of
// a hand-over would cut off what they have begun.
func (m *machine) repeatedStop(r stopRequest) bool {
	switch {
	case r.leave:
		return false
	case r.passedOn:
		m.stops.again(fromPeer, r.at) // of several, onStop takes the first
		return false
	case r.signal == nil: // what the program asks for is no repetition
		return r.reason != "" && m.stops.passedOn(r.at)
	case !m.stops.again(signalName(r.signal), r.at):
		return false
	}
	m.do.sayRepeated(signalName(r.signal))
	return true
}

// concernsThisAlone reports whether the child serves on, whatever becomes of this
// process.
func (m *machine) concernsThisAlone(r stopRequest) bool {
	c := &m.child
	if m.state == stopped && !r.byOperator() { // a program's Shutdown on its way out
		return false
	}
	return c.stage == accepting && !c.orderly && m.stop == notStopping && !r.leave && !r.passedOn &&
		r.at.Sub(c.since) > passOnFor && !m.do.isService()
}

// endAlone: this process alone is to end. It drains already, or does from now on;
// the first signal cuts off nothing here either, since the child may have got the
// same one, and pass it on. If the child dies after all, this process serves on
// as if no signal had come. But if the program has asked for the end it is not
// prepared to serve on, and this process stops.
func (m *machine) endAlone(r stopRequest) {
	if r.byOperator() {
		r.now, m.child.alone = r.now || m.child.alone, true
	} else {
		m.program.ends, m.program.now = true, m.program.now || r.now
	}
	m.do.sayStop(noticeStopAlone, r)
	switch {
	case m.state == stopped:
		if r.signal != nil { // the program hangs on its way out: one more signal ends it
			m.do.endSignals()
		}
	case m.state == standingBy:
		m.hurried = m.hurried || r.now
		m.onProbationOver(evProbationOver{id: m.child.id})
	case r.now && m.drain == running:
		m.do.hurryDrain()
	}
}

// leave goes on with an Abort that has waited for the child.
func (m *machine) leave() {
	if m.leaveLater {
		m.leaveLater = false
		m.onStop(stopRequest{leave: true})
	}
}

// leaveToChild: the program of this process gives up, on an error of a server,
// say, while a child is starting. The child is to serve, as if this process had
// died: it has a copy of every socket, and connections that come from now on wait
// for it there.
func (m *machine) leaveToChild() {
	m.child.heir, m.gaveUp = true, true
	m.do.leaveToChild()
	m.do.say(noticeGivesUp, nil)
}

// passStop tells the other process of a hand-over that the service is to end.
func (m *machine) passStop(r stopRequest) {
	if r.leave || r.passedOn {
		return
	}
	if m.child.went() && (r.now || !m.child.orderly) { // an orderly one knows, but not that it should cut off
		m.do.sayStop(noticeStopPassedOn, r)
		m.do.sendStop(r.now)
	}
	if m.parent == parentAlive {
		m.do.sendParentStop(r.now)
	}
}

// refuseAll answers all callers that wait for an upgrade that will not be.
func (m *machine) refuseAll() {
	if m.pending {
		m.do.say(noticeTooLate, nil)
	}
	callers := slices.Concat(m.current, m.waiting, m.asked)
	m.current, m.waiting, m.asked, m.pending = nil, nil, nil, false
	tell(callers, fmt.Errorf("grace: Upgrade: %w", ErrStopped))
}

// onChildStop: the child begins to end, and tells why.
func (m *machine) onChildStop(e evChildStop) {
	c := &m.child
	if !c.went() || e.early { // it will exit, and was never ready
		if !e.leave && c.lastError == nil {
			c.lastError = errors.New("it was told to stop before it was ready")
		}
		return
	}
	if !e.leave {
		if c.stage == leaving && e.at.Sub(c.since) > passOnFor { // the child is not the service any more
			m.do.say(noticeStopIgnored, nil)
			return
		}
		c.orderly = !m.rollsBackSoon()
		m.onStop(stopRequest{at: e.at, now: e.now, passedOn: true})
		return
	}
	if c.stage == going {
		if c.lastError == nil {
			c.lastError = errors.New("it has given up by itself")
		}
		return // it will exit
	}
	if c.stage == leaving || m.state == stopped || m.stop != notStopping {
		return
	}
	c.stage, c.since = leaving, e.at
	m.do.stopMoves()
	m.do.after(m.limits.drain+m.limits.ready, evGone{c.id})
	m.rollBack(&UpgradeError{Reason: ErrRolledBack, Pid: c.pid, Err: errors.New("it has stopped by itself")})
}

// beginLastDrain ends a process that has no child. If it gives up while its
// parent stands by, the parent takes over, and has the queues.
func (m *machine) beginLastDrain(r stopRequest) {
	if r.leave && m.parent == parentAlive {
		m.gaveUp = true
		m.do.disown()
		m.do.sendParentLeave()
	}
	m.beginDrain(false)
}

// beginDrain finishes what this process has begun. move: connections go to the child.
func (m *machine) beginDrain(move bool) {
	m.state, m.drain = draining, running
	m.do.beginDrain(move)
	if m.hurried {
		m.hurried = false
		m.do.hurryDrain()
	}
}

// onDrained: nothing is left, or it was cut off, or the drain was called off.
func (m *machine) onDrained() {
	switch {
	case m.drain != running && m.drain != over:
	case m.state == releasing && m.drain == running:
		m.onPaused()
	case m.state == acquiring:
		m.drain = over
	case m.state == resuming:
		m.drain = returning
		m.do.resume()
	case m.drain == running:
		if m.child.stage == accepting && m.stop == notStopping && m.state != lingering {
			// If this process exited now and the child is stopped or hangs, no
			// process would serve.
			m.drain = over
			m.ask()
			return
		}
		m.drained()
	}
}

func (m *machine) drained() {
	m.drain = noDrain
	m.do.say(noticeDrained, nil)
	if m.mustHold() {
		m.state = holding
	} else {
		m.finish()
	}
}

// mustHold reports whether this process, which has drained, is to wait. A child that
// is being started must be known, so that it can be killed. And systemd ends what is
// left of a service whose main process exits: the child, and those that linger, are
// to drain in peace.
func (m *machine) mustHold() bool {
	others := m.child.went() || m.lingering() > 0
	return m.child.stage == launching || m.stop == stopService && others && m.do.hasServiceManager()
}

// endHold finishes, if that was what this process has waited for.
func (m *machine) endHold() {
	if m.state == holding && !m.mustHold() {
		m.finish()
	}
}

// onResumed: all servers serve again as before a drain that was called off.
func (m *machine) onResumed() {
	if m.drain != returning {
		return
	}
	m.drain, m.state = noDrain, serving
	switch {
	case m.isToBeLame(m.hurried): // told to stop meanwhile, and it accepts
		m.goLame()
	case m.stop != notStopping:
		m.beginDrain(false)
	default:
		m.settle() // an upgrade may be wanted already
	}
}

// finish ends this process's part for good.
func (m *machine) finish() {
	m.state = stopped
	m.refuseAll()
	m.do.finish(m.gaveUp, m.child.stage == noChild && m.parent != parentAlive && m.parent != parentFinished)
}

func (m *machine) onFinished() {
	if m.state == stopped && !m.ended {
		m.ended = true
		m.do.done()
	}
}

// isOver reports whether nothing more can come of an event. While a child lives,
// signals that come late are passed on to it.
func (m *machine) isOver() bool { return m.ended && m.child.stage == noChild }
