package grace

import (
	"errors"
	"fmt"
	"time"
)

// The state machine: exclusive state, which one process at a time may have (see
// Exclusive). At an upgrade it changes hands before the child accepts:
//
//	upgrading ── the child waits for it ──> releasing ── the child accepts ──> standingBy
//	    ^                                       │                                  │
//	    │                                the child dies                     the child dies
//	serving <── resuming <── acquired ── acquiring <──────────────────────────────┘
//
// While this process is releasing no process accepts, and none is to: what comes
// waits, in the kernel's queues and in connections from which nothing is read. At
// first what has begun is finished, then release is called, then the child is told to
// go, which calls acquire. Why is nothing lost on any of the ways back?
//
//   - What waits is in the hands of the kernel, and this process has its descriptors
//     until the child accepts: a queue is shared, a connection that is to move is
//     held, and sent only then.
//   - No two processes have the state: the child calls acquire only after go, which is
//     sent after release has returned; this process calls acquire again only if it has
//     never sent go, or when the child is proven to be dead.
//   - This process accepts again only when it has the state.
//   - Each step has a limit, so that no client waits for ever. Only one thing ends the
//     service: that this process can't have the state back. That is a crash, and
//     whoever watches the service is told by the error.

// A holdStage tells which process has the exclusive state.
type holdStage int

const (
	noState       holdStage = iota // there is none, or it was not acquired yet, or is lost
	held                           // this process has it
	beingReleased                  // release runs
	released                       // no process has it
	lent                           // the child may have it, until it is proven to be dead
	beingAcquired                  // acquire runs, to have it back
)

// acquireGrace is how long a child may take to fail by itself, and tell why, when the
// time to acquire is over.
const acquireGrace = 2 * time.Second

// waitsForState reports whether the child is ready, and waits for what this process
// has.
func (m *machine) waitsForState() bool {
	c := &m.child
	return c.stage == preparing && c.line && c.claimed && c.exclusive && m.hold != noState
}

// beginRelease: the child waits for the exclusive state.
func (m *machine) beginRelease() {
	m.state, m.drain = releasing, running
	m.do.say(noticeReleasing, nil)
	m.do.pause()
	m.do.after(m.limits.exclusive, evPauseLate{m.child.id})
}

// onPauseLate: what has begun was not finished in time. It is cut off, or it is worth
// more than the upgrade.
func (m *machine) onPauseLate(evPauseLate) {
	switch {
	case m.state != releasing || m.drain != running || m.child.killReason != nil:
	case m.limits.cuts:
		m.do.say(noticePauseCuts, nil)
		m.do.hurryDrain()
	default:
		m.do.say(noticePauseRefuses, nil)
		m.child.lastError = fmt.Errorf("what this process had begun was not finished within %v", m.limits.exclusive)
		m.kill(ErrExclusive)
	}
}

// onPaused: nothing is left that needs the exclusive state.
func (m *machine) onPaused() {
	m.drain = over
	if m.child.killReason == nil { // else its end follows
		m.hold = beingReleased
		m.do.release()
	}
}

func (m *machine) onReleased(e evReleased) {
	if m.hold != beingReleased {
		return
	}
	m.hold = released
	c := &m.child
	switch {
	case m.state == acquiring:
		m.reclaim()
	case m.state != releasing || c.stage != preparing || c.killReason != nil: // its end follows
	case e.err != nil:
		c.lastError = errors.Join(c.lastError, e.err)
		m.kill(ErrExclusive)
	default:
		m.hold = lent
		m.goAhead()
	}
}

// onMoved: what waited is the child's, or has come back.
func (m *machine) onMoved() {
	m.moving = false
	m.stopLater()
	if m.state == standingBy && m.child.judged && !m.child.waited {
		m.well() // probation was over before
	}
}

// takeBack: the child is dead, or gives up. This process accepts again as soon as it
// has the exclusive state, and tells of err by n then.
func (m *machine) takeBack(n notice, err error) {
	m.back.notice, m.back.err = n, err
	m.state = acquiring
	if m.hold != held && m.drain == running {
		m.do.cancelDrain() // it would cut off what waits
	}
	m.reclaim()
}

// reclaim calls for the exclusive state, unless something must end before.
func (m *machine) reclaim() {
	switch {
	case m.hold == held:
		m.acceptAgain(m.back.notice, m.back.err)
	case m.hold == beingReleased: // evReleased
	case m.hold == lent && m.child.stage != noChild: // evExit
	case m.hold == lent, m.hold == released:
		m.hold = beingAcquired
		m.do.acquire()
	}
}

func (m *machine) onAcquired(e evAcquired) {
	if m.hold != beingAcquired {
		return
	}
	if e.err == nil {
		m.hold = held
		m.acceptAgain(m.back.notice, m.back.err)
		return
	}
	m.hold = noState
	m.lose(errors.Join(e.err, m.back.err))
}

// lose ends the service: the exclusive state can't be had back.
func (m *machine) lose(err error) {
	m.do.lose(err)
	m.answer(err)
	m.refuseAll()
	m.later, m.leaveLater = nil, false
	m.stop, m.hurried = stopService, true
	m.do.stopping(true)
	m.endLingerers(false)
	if m.drain == running { // it was called off, and ends soon
		m.state, m.hurried = draining, false
		m.do.hurryDrain()
		return
	}
	m.beginDrain(false)
}

// postpone keeps a stop that comes when the child was told to go, until it is known
// whether the child accepts, and has what waits: that is this process's until then, and
// it could serve none of it. A child that is told to stop takes nothing more. Nor could
// it serve what is in the queues while a sick child is being killed.
func (m *machine) postpone(r stopRequest) {
	if r.leave {
		m.leaveLater = true
	} else {
		m.later = append(m.later, r)
	}
}

// stopLater goes on with the stops that were postponed, each as if it came now: a signal
// and what the program asks for differ in what they mean.
func (m *machine) stopLater() {
	later := m.later
	m.later = nil
	for _, r := range later {
		m.stopNow(r)
	}
	m.leave()
}
