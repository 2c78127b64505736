package grace

import (
	"errors"
	"fmt"
	"os"
	"time"
)

// The state machine: whether the child is well, and what is done if it is not.
//
// Alive and well are two things: a child that is stopped, or hangs, has accepted
// the hand-over and does not serve. So this process asks, when probation is over
// and from then on until it exits, and the child answers through the goroutine
// that owns its state. A child that does not answer is killed, and the hand-over
// is rolled back.
//
// What if the channel between the two does not work any more, though both live?
// Then the child can't be judged, and which one must give way depends on how far
// they have come:
//
//   - Before the child accepts, and during probation, this process is the one to
//     trust: the child is killed, and when it is proven to be dead this process
//     serves on. It has never stopped to accept, or it accepts again then. The
//     child, for its part, does not begin to accept when it can't hear its parent,
//     and that lives.
//   - Later the child has proven that it is well. If it is this process that can't
//     read, it moves nothing more, finishes what it has, and exits: the child
//     serves in any case, and takes nothing for its own before its parent is
//     proven to be dead. If it is the child that has closed the channel, or
//     writes nonsense, it is killed.

const (
	// pongPatience is how long an answer may take. It is the time of an outage if
	// the child is stopped, and far more than a machine that is merely busy takes.
	// It is counted in steps, so that it is not over if this process was stopped.
	pongPatience = 10 * time.Second
	pongSteps    = 10
	// pingEvery is how often a draining process asks, besides at its end.
	pingEvery = 5 * time.Second
	// killPatience is how long a process that was killed may take to be gone.
	killPatience = 5 * time.Second
	longestRetry = time.Minute // between two tries to kill
	// hungUpGrace is how long a child that has hung up may take to end by itself:
	// its exit status says more.
	hungUpGrace = time.Second
)

// ask asks the child whether it is well; well is called when the child has
// answered, or is not to be asked.
func (m *machine) ask() {
	c := &m.child
	if c.mute() {
		m.well()
		return
	}
	c.asked++
	m.do.ping()
	if !c.waited {
		c.waited = true
		m.do.after(m.limits.pong/pongSteps, evSilence{c.id, c.answered, pongSteps})
	}
}

// onSilence counts the steps. e.answered is how many answers had come when it began.
func (m *machine) onSilence(e evSilence) {
	c := &m.child
	next := evSilence{c.id, c.answered, pongSteps}
	switch {
	case !c.waited || c.mute() || c.killReason != nil:
		return
	case c.answered != e.answered:
	case e.steps > 1:
		next.steps = e.steps - 1
	case m.stop != notStopping: // the service ends in any case
		m.well()
		return
	default:
		m.onSick(fmt.Errorf("it did not answer for %v", m.limits.pong))
		return
	}
	m.do.after(m.limits.pong/pongSteps, next)
}

// onSick: the child accepts and does not serve, for the reason why.
func (m *machine) onSick(why error) {
	c := &m.child
	if m.state != standingBy && m.state != draining || c.orderly || c.deaf || c.killReason != nil || m.stop != notStopping {
		return
	}
	m.killSick(why)
}

// killSick kills a child that has accepted, for the reason why, which is told first.
func (m *machine) killSick(why error) {
	m.child.lastError = errors.Join(m.child.lastError, why)
	m.do.say(noticeSick, why)
	m.kill(ErrUnhealthy)
}

// rollsBackSoon reports whether the child, which has accepted, is being killed: when it is
// dead, or can't be killed, this process accepts again.
func (m *machine) rollsBackSoon() bool {
	return m.child.stage == accepting && m.child.killReason != nil && m.stop == notStopping && (m.state == standingBy || m.state == draining)
}

// rollBackReason is why a child that has accepted is rolled back.
func (c *childState) rollBackReason() error {
	if c.killReason == ErrUnhealthy {
		return ErrUnhealthy
	}
	return ErrRolledBack
}

func (m *machine) onPong() {
	if m.child.answered++; m.child.answered == m.child.asked {
		m.well()
	}
}

// onUnasked: the question could not be sent, so the child had no chance to
// answer, and may be well. The kernel takes nothing from this process, which
// can't be trusted then with the connections that it would take back. So the
// child serves, and this process finishes what it has.
func (m *machine) onUnasked(e evUnasked) {
	if m.child.mute() {
		return
	}
	m.child.deaf = true
	m.do.stopMoves()
	m.do.say(noticeUnasked, e.err)
	m.well()
}

// well: the child has answered, or is not to be asked. What has waited for that
// goes on.
func (m *machine) well() {
	m.child.waited = false
	switch {
	case m.rollsBackSoon(): // an answer that was on its way
	case m.state == standingBy && m.child.judged && m.moving: // evMoved
	case m.state == standingBy && m.child.judged:
		m.do.say(noticeUpgradeDone, nil)
		m.answer(nil)
		m.beginDrain(true)
		m.do.after(pingEvery, evCheckUp{m.child.id})
		if m.mayLinger() {
			m.do.after(m.limits.settle, evSettled{m.child.id})
		}
	case m.state == draining && m.drain == over:
		m.drained()
	case m.lingers == lingerAsked:
		m.linger()
	}
}

// onCheckUp asks while this process drains, again and again.
func (m *machine) onCheckUp() {
	if m.state != draining || m.stop != notStopping {
		return
	}
	if !m.child.waited {
		m.ask()
	}
	if m.state == draining {
		m.do.after(pingEvery, evCheckUp{m.child.id})
	}
}

// onStuck: connections can't be moved any more. Those that were on their way are
// served here.
func (m *machine) onStuck(e evStuck) {
	if m.child.mute() {
		return // the child ends
	}
	m.do.say(noticeStuck, e.err)
	if !m.child.waited {
		m.ask()
	}
}

// onDeaf: the channel was read to its end, or can't be read. That does not prove
// the end of the child: only the kernel tells that.
func (m *machine) onDeaf(e evDeaf) {
	c := &m.child
	why := fmt.Errorf("the control channel has ended: %w", e.err)
	switch {
	case m.mayServe():
		m.do.after(hungUpGrace, evHungUp{c.id, why})
	case c.orderly || c.stage == leaving || m.stop != notStopping:
		c.deaf = true
		m.well()
	case e.ours && m.state != standingBy:
		c.deaf = true
		m.do.say(noticeDeaf, e.err)
		m.well()
	default:
		m.do.after(hungUpGrace, evHungUp{c.id, why})
	}
}

// kill ends the child; evExit follows.
func (m *machine) kill(why error) {
	if m.child.killReason == nil {
		m.child.killReason = why
	}
	m.tryKill(time.Second)
}

// tryKill kills the child, and looks after pause whether it is gone.
func (m *machine) tryKill(pause time.Duration) {
	err := m.do.kill()
	if errors.Is(err, os.ErrProcessDone) {
		err = nil
	}
	again := evKillAgain{id: m.child.id, pause: pause, err: err}
	if err == nil {
		pause = max(pause, killPatience)
	} else {
		m.onUnkillable(err)
	}
	m.do.after(pause, again)
}

func (m *machine) onKillAgain(e evKillAgain) {
	if m.child.killReason == nil {
		return
	}
	if e.err == nil {
		m.onUnkillable(fmt.Errorf("it is there still, %v after SIGKILL", max(e.pause, killPatience)))
	}
	m.tryKill(min(2*e.pause, longestRetry))
}

// onUnkillable: the child can't be killed, or does not end by that. The callers
// that wait for the upgrade are told; killing is tried on. Before the child has
// accepted, this process has all sockets, and waits: there must not be two
// children at once. Afterwards one process must accept, and that is this one.
func (m *machine) onUnkillable(err error) {
	c := &m.child
	if c.unkillable {
		return
	}
	c.unkillable = true
	m.do.say(noticeUnkillable, err)
	failure := &UpgradeError{Reason: c.killReason, Pid: c.pid, Err: errors.Join(c.lastError, fmt.Errorf("it can't be killed: %w", err))}
	if c.stage == accepting && !c.orderly && m.stop == notStopping && m.state != stopped {
		c.stage, c.since = leaving, m.now()
		m.do.stopMoves()
		failure.Reason = c.rollBackReason()
		m.rollBack(failure)
		return
	}
	if m.state == releasing && !c.went() { // it has nothing, and waits for a go that never comes
		c.stage, c.since = leaving, m.now()
		m.do.stopMoves()
		m.takeBack(noticeFailed, failure)
		return
	}
	m.answer(failure)
}
