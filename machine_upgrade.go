package grace

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
)

// The state machine: an upgrade, from the request to the end of probation, and the
// way back. Whether the child is well: machine_child.go.

// onReady: everything is agreed; begin to accept.
func (m *machine) onReady() error {
	if m.state != starting {
		return fmt.Errorf("grace: Ready: %w", ErrStopped)
	}
	m.state = serving
	if err := m.do.openGates(); err != nil {
		return err
	}
	if m.exclusive {
		m.hold = held
	}
	return nil
}

// onServing: this process accepts, and Ready has returned.
func (m *machine) onServing() {
	m.do.say(noticeServing, nil)
	m.settle()
}

// onSignal: this process was sent a signal, or its parent was and has passed it on.
func (m *machine) onSignal(e evSignal) {
	if m.upgrades.again(e.name, e.at) {
		m.do.sayRepeated(cmp.Or(e.name, "passed on"))
		return
	}
	m.onUpgrade(nil)
}

func (m *machine) onUpgrade(r reply) {
	switch {
	case m.child.accepted() && m.child.stage != leaving && m.stop == notStopping && m.state != serving && m.state != resuming:
		m.passOn(r)
	case m.state >= draining && m.state != resuming, m.stop != notStopping:
		m.do.say(noticeTooLate, nil)
		tell([]reply{r}, fmt.Errorf("grace: Upgrade: %w", ErrStopped))
	default:
		m.pending = true
		m.waiting = append(m.waiting, r)
		m.do.say(noticeAsked, nil)
		m.settle()
		if m.pending {
			m.do.say(noticeQueued, nil)
		}
	}
}

// passOn passes a request on to the child: its sender may have read the PID file
// a moment before the hand-over.
func (m *machine) passOn(r reply) {
	m.passed = true
	m.do.sendUpgrade()
	m.do.say(noticePassedOn, nil)
	tell([]reply{r}, fmt.Errorf("grace: Upgrade: %w", ErrHandedOver))
}

// tell answers callers of Upgrade; a nil one was a signal.
func tell(callers []reply, err error) {
	for _, c := range callers {
		if c != nil {
			c <- err
		}
	}
}

// answer tells the callers of the upgrade under way how it went.
func (m *machine) answer(err error) {
	tell(m.current, err)
	m.current = nil
}

// inTheWay returns what an upgrade that is wanted waits for; "" if nothing. At
// most two generations run, besides those that linger.
func (m *machine) inTheWay() string {
	switch {
	case m.state == starting:
		return "this process is ready"
	case m.state == upgrading, m.state == releasing:
		return "the upgrade under way is over"
	case m.state == acquiring:
		return "this process has the exclusive state again"
	case m.state == resuming:
		return "the drain that was called off is over"
	case m.state != serving:
		return "never"
	case m.child.stage != noChild:
		return fmt.Sprintf("the new process that has given up, pid %d, is gone", m.child.pid)
	case m.restoring > 0:
		return "what the last upgrade had taken is back in place"
	case m.parent == parentAlive, m.parent == parentFinished:
		return fmt.Sprintf("the old process, pid %d, is gone", m.parentPid)
	case m.lingering() > m.limits.processes:
		i := slices.IndexFunc(m.lingerers, func(l lingerer) bool { return !l.stuck })
		return fmt.Sprintf("an older process that lingers, pid %d, is gone", m.lingerers[i].pid)
	}
	return ""
}

// settle begins the upgrade that is wanted, as soon as nothing is in its way.
func (m *machine) settle() {
	if !m.pending || m.inTheWay() != "" {
		return
	}
	m.pending, m.passed = false, false
	m.current, m.waiting = append(m.current, m.waiting...), nil
	switch {
	case m.underMaster:
		asked := m.current
		m.current, m.asked = nil, append(m.asked, asked...)
		m.do.askMaster(asked)
	case !m.supported:
		m.do.say(noticeUnsupported, nil)
		m.answer(fmt.Errorf("grace: Upgrade: %w", ErrNotSupported))
	default:
		m.state = upgrading
		m.child = childState{id: m.child.id + 1, stage: launching}
		m.do.say(noticeUpgradeBegins, nil)
		m.do.launch(m.child.id)
	}
}

func (m *machine) onParentGone() {
	switch m.parent {
	case parentLingers: // its end as one that lingers follows
		m.parent = parentGone
	case parentAlive, parentFinished, parentStuck:
		m.parent = parentGone
		m.do.say(noticeParentGone, nil)
		m.trimLingerers()
		m.settle()
	}
}

// onMain: the parent has finished. It has closed its sockets and given up the PID file,
// and can't take over again: if its program hangs on its way out, that harms nothing but
// an upgrade that waits for its end.
func (m *machine) onMain() {
	m.do.becomeMain()
	if m.parent == parentAlive {
		m.parent = parentFinished
		m.do.after(m.limits.exit(), evParentStuck{})
	}
}

// onParentStuck: the upgrade that waits may begin. A third process lives then, which has
// nothing of the service.
func (m *machine) onParentStuck() {
	if m.parent == parentFinished {
		m.parent = parentStuck
		m.do.say(noticeParentStuck, nil)
		m.trimLingerers()
		m.settle()
	}
}

func (m *machine) onMasterGone() {
	if m.state == serving || m.state == starting {
		m.do.say(noticeMasterGone, nil)
	}
}

func (m *machine) onMasterAsked(e evMasterAsked) {
	if e.err != nil {
		m.do.say(noticeMasterRefused, e.err)
		m.answerAsked(e.replies, e.err)
		return
	}
	m.do.say(noticeMasterAsked, nil)
}

// answerAsked answers those of callers that have no answer yet.
func (m *machine) answerAsked(callers []reply, err error) {
	for _, c := range callers {
		if i := slices.Index(m.asked, c); i >= 0 {
			m.asked = slices.Delete(m.asked, i, i+1)
			tell([]reply{c}, err)
		}
	}
}

func (m *machine) onLaunched(e evLaunched) {
	if m.child.stage != launching {
		return
	}
	if e.err != nil {
		m.child = childState{id: m.child.id}
	} else {
		m.child.stage, m.child.pid = preparing, e.pid
		m.do.after(m.limits.ready-e.age, evLate{id: m.child.id})
	}
	switch {
	case m.state != upgrading: // told to stop meanwhile
		if e.err == nil {
			m.kill(ErrStopped)
		}
		m.endHold()
	case e.err != nil:
		m.upgradeFailed(e.err)
	default:
		m.do.say(noticeStarted, nil)
	}
}

// onLine: something was read from the readiness pipe, or it was closed.
func (m *machine) onLine(e evLine) {
	switch {
	case !m.mayServe() || m.child.killReason != nil:
	case e.line == readyLine:
		m.child.line = true
		m.maybeGo()
	case e.err == nil:
		m.child.lastError = fmt.Errorf("it wrote %q to the readiness pipe where %q was expected", e.line, readyLine)
		m.kill(ErrProtocol)
	default:
		m.do.after(hungUpGrace, evHungUp{m.child.id, errors.New("it closed the readiness pipe without a word")})
	}
}

func (m *machine) onClaims(e evClaims) {
	if e.err != nil {
		m.child.lastError = e.err
		m.kill(ErrProtocol)
		return
	}
	if m.state == releasing { // it was ready before
		return
	}
	m.child.claimed, m.child.pongs, m.child.keeps, m.child.exclusive = true, e.pongs, e.keeps, e.exclusive
	m.maybeGo()
}

// maybeGo lets the child go on if it is ready.
func (m *machine) maybeGo() {
	c := &m.child
	switch {
	case c.stage != preparing || !c.line || !c.claimed || c.killReason != nil:
	case !m.waitsForState():
		m.goAhead()
	case m.state == upgrading:
		m.beginRelease()
	} // else it is an heir, and goes on when this process has released, and is gone
}

// goAhead lets the child go on. From then on it is not killed for being late, unless it
// hangs before it accepts.
func (m *machine) goAhead() {
	c := &m.child
	c.stage = going
	limit := m.limits.ready
	if m.hold == lent {
		limit = m.limits.exclusive + acquireGrace
	}
	m.do.after(limit, evLate{id: c.id, went: true, limit: limit}) // again: a child that does not accept by then hangs
	m.do.sendGo()
}

// mayServe reports whether this process waits for a child that does not accept
// yet.
func (m *machine) mayServe() bool {
	return m.state == upgrading || m.state == releasing || m.state == draining && m.child.heir && !m.child.accepted()
}

// onLate: the ready timeout is up. A timeout that began before go does not count
// after it: the child may have begun to accept. Nor does it if the child waits for
// this process.
func (m *machine) onLate(e evLate) {
	if m.mayServe() && m.child.went() == e.went && !m.waitsForState() {
		m.child.lastError = fmt.Errorf("killed after %v", cmp.Or(e.limit, m.limits.ready))
		m.kill(ErrReadyTimeout)
	}
}

// onHungUp: the child has closed the pipe or the channel, and is not gone.
func (m *machine) onHungUp(e evHungUp) {
	if m.child.killReason != nil {
		return
	}
	switch {
	case m.mayServe():
		m.child.lastError = errors.Join(m.child.lastError, e.why)
		m.kill(ErrProtocol)
	case m.child.stage == leaving || m.child.orderly || m.state == stopped || m.stop != notStopping:
	default:
		m.killSick(e.why)
	}
}

// onAccepting: the child accepts. Stop accepting, and stand by.
func (m *machine) onAccepting(e evAccepting) {
	c := &m.child
	if c.stage != going || !m.mayServe() {
		return
	}
	if c.unkillable { // it was late, and is no more
		c.killReason, c.unkillable = nil, false
	}
	c.stage, c.since = accepting, e.at
	if c.heir {
		m.do.say(noticeHeirServes, nil)
		return
	}
	m.do.tellParentOfChild(true)
	m.do.closeGates()
	if m.state == releasing {
		m.moving = true
		m.do.moveHeld()
	}
	m.state = standingBy
	m.do.say(noticeStandingBy, nil)
	if m.pending {
		// Asked for while the child was starting: it may run a binary older
		// than the one that is wanted.
		m.pending = false
		tell(m.waiting, fmt.Errorf("grace: Upgrade: %w", ErrHandedOver))
		m.waiting = nil
		m.passOn(nil)
	}
	m.do.examine(m.limits.probation)
	if !m.moving {
		m.stopLater()
	}
}

// onProbationOver: the child is asked once more whether it is well, or is known to be sick.
// A health check that ends late, after an operator has cut probation short, still counts.
func (m *machine) onProbationOver(e evProbationOver) {
	switch {
	case e.sick != nil:
		m.onSick(e.sick)
	case m.state == standingBy:
		m.child.judged = true
		m.ask()
	}
}

// onExit: the child has ended and was reaped.
func (m *machine) onExit(e evExit) {
	c := m.child
	m.moving = false
	m.do.forget()
	m.child = childState{id: c.id}
	failure := e.failure
	failure.Err = errors.Join(c.lastError, failure.Err)
	switch {
	case m.state == stopped:
		m.reportDeath(c, failure)
	case m.state == holding:
		m.endHold()
	case m.state == acquiring:
		m.reclaim()
	case m.state != releasing && (m.stop != notStopping || c.orderly):
		// The service is to end, and its drain has begun: this process does not
		// take over again.
		if c.heir && m.stop == stopLeave {
			m.gaveUp = false
			m.do.say(noticeHeirDied, failure)
		}
		m.stopLater() // what was to move to it is not waited for any more
		m.well()
	case c.stage == leaving:
		m.settle()
	case c.stage == accepting:
		failure.Reason = c.rollBackReason()
		m.rollBack(failure)
	default:
		failure.Reason = ErrExited
		if c.killReason != nil && e.killed {
			failure.Reason = c.killReason
		}
		m.upgradeFailed(failure)
	}
}

// reportDeath tells of the end of the child after this process's own.
func (m *machine) reportDeath(c childState, failure *UpgradeError) {
	switch {
	case c.orderly || c.handedOver || m.stop != notStopping:
	case c.deaf:
		m.do.say(noticeDiedUnheard, failure)
	default:
		m.do.say(noticeDied, failure)
	}
}

// upgradeFailed: the child was never ready, and this process goes on as before.
func (m *machine) upgradeFailed(err error) {
	if m.state == releasing {
		m.takeBack(noticeFailed, err)
		return
	}
	m.state = serving
	m.upgrades = repeats{} // what comes now is meant to try again
	m.do.mend()
	m.restore(noticeFailed, err)
	m.leave()
}

// rollBack: the child is dead, or gives up, and this process accepts again at once, or
// as soon as it has the exclusive state.
func (m *machine) rollBack(err error) {
	m.lingers = noLingering
	if m.hold == lent {
		m.takeBack(noticeRolledBack, err)
		return
	}
	m.acceptAgain(noticeRolledBack, err)
}

// acceptAgain is the way back into serving, from where this process accepted nothing.
func (m *machine) acceptAgain(n notice, err error) {
	m.state = serving
	m.upgrades = repeats{}
	if m.drain != noDrain {
		m.state = resuming
		m.do.cancelDrain() // or what waits at the gates would be told that its connection ends
	}
	m.do.reopenGates()
	if n == noticeFailed {
		m.do.mend()
	} else {
		m.do.tellParentOfChild(false)
	}
	if m.passed { // passed on to the child, which is dead
		m.pending = true
	}
	m.restore(n, err)
	if m.drain == over { // it has waited only to hear that the child is well
		m.onDrained()
	}
	m.hurried = m.hurried && m.stop != notStopping // told so in acquiring
	if m.program.ends {
		m.onStop(stopRequest{now: m.program.now})
	}
	m.stopLater()
}

// restore puts back what the child may have taken, and then answers the callers.
// The next upgrade waits until all is there.
func (m *machine) restore(n notice, err error) {
	callers := m.current
	m.current = nil
	m.restoring++
	m.do.restore(callers, n, err)
}

func (m *machine) onRestored() {
	if m.restoring > 0 {
		m.restoring--
		m.settle()
	}
}
