package grace

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"
)

// What each event leads to, part 1: an upgrade, from the request to the end of probation,
// and the way back.

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
		m.requests = append(m.requests, request{r, wanted})
		m.do.say(noticeAsked, nil)
		m.settle()
		if m.has(wanted) {
			m.do.say(noticeQueued, nil)
		}
	}
}

// passOn passes a request on to the child: its sender may have read the PID file
// a moment before the hand-over.
func (m *machine) passOn(r reply) {
	if !m.has(handedOn) {
		m.requests = append(m.requests, request{nil, handedOn})
	}
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
	tell(m.take(underWay), err)
}

// has reports whether there is a request of this stage.
func (m *machine) has(stage requestStage) bool {
	return slices.ContainsFunc(m.requests, func(r request) bool { return r.stage == stage })
}

// take removes the requests of these stages, and returns who has made them.
func (m *machine) take(stages ...requestStage) (callers []reply) {
	m.requests = slices.DeleteFunc(m.requests, func(r request) bool {
		if !slices.Contains(stages, r.stage) {
			return false
		}
		callers = append(callers, r.reply)
		return true
	})
	return callers
}

// put adds a request of this stage for each caller.
func (m *machine) put(callers []reply, stage requestStage) {
	for _, c := range callers {
		m.requests = append(m.requests, request{c, stage})
	}
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
	if !m.has(wanted) || m.inTheWay() != "" {
		return
	}
	m.take(handedOn)
	callers := m.take(underWay, wanted)
	if m.underMaster {
		m.put(callers, atMaster)
		m.do.askMaster(callers)
		return
	}
	m.put(callers, underWay)
	if !m.supported {
		m.do.say(noticeUnsupported, nil)
		m.answer(fmt.Errorf("grace: Upgrade: %w", ErrNotSupported))
		return
	}
	m.state = upgrading
	m.child = childState{id: m.child.id + 1, stage: launching}
	m.do.say(noticeUpgradeBegins, nil)
	m.do.launch(m.child.id)
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
		if i := slices.Index(m.requests, request{c, atMaster}); i >= 0 {
			m.requests = slices.Delete(m.requests, i, i+1)
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
	if m.has(wanted) {
		// Asked for while the child was starting: it may run a binary older
		// than the one that is wanted.
		tell(m.take(wanted), fmt.Errorf("grace: Upgrade: %w", ErrHandedOver))
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
	m.put(m.take(handedOn), wanted) // the child is dead
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
	m.restoring++
	m.do.restore(m.take(underWay), n, err)
}

func (m *machine) onRestored() {
	if m.restoring > 0 {
		m.restoring--
		m.settle()
	}
}

// Part 2: exclusive state, which one process at a time may have (see
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

// Part 3: whether the child is well, and what is done if it is not.
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
	c := &m.child
	if c.answered == c.asked { // nothing was asked; if it counted, the next answer would be one too many
		return
	}
	if c.answered++; c.answered == c.asked {
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
		m.beginDrain(true)
		m.answer(nil) // the caller finds a process that drains
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

// Part 4: lingering. A process that has handed over, and still has long
// streams when the drain has gone on for a while, leaves everything else to the child:
// roll back, the PID file, and being systemd's main process. From then on the child may
// be upgraded.
//
// It is reached by a leash. The newest process has one end of it, which it passes on at
// each upgrade, and can tell this one to end; this one can tell the newest what was meant
// for the service. If the newest dies while it serves alone, no process takes over, as
// if the old one had exited; the leash ends with the last process that has the other
// end, and this process ends soon, since none is left that would pass a stop on.

// lingerAfter is how long a drain goes on before this process lingers. What takes longer
// is a stream, whatever its protocol.
const lingerAfter = 2 * time.Second

// A lingerStage tells how far this process is on its way to lingering.
type lingerStage int

const (
	noLingering lingerStage = iota
	lingerAsked             // it has a leash, and the child is asked whether it is well
	lingered                // it lingers, or did until it stopped
)

// A lingerer is an older process that lingers.
type lingerer struct {
	pid     int
	told    bool // to end
	stuck   bool // it did not end in time: it is waited for no more
	watched bool // it waits for this process: see awaitsNewest
}

// lingering counts the older processes that are waited for.
func (m *machine) lingering() (n int) {
	for _, l := range m.lingerers {
		if !l.stuck {
			n++
		}
	}
	return n
}

// mayLinger reports whether this process is to linger once its drain has settled. One that
// still has exclusive state, since the child did not wait for it, drains within
// DrainTimeout and releases it: while it lingered no later version could have it.
func (m *machine) mayLinger() bool {
	c := &m.child
	return m.limits.processes > 0 && m.state == draining && m.drain == running && m.stop == notStopping && !m.program.ends &&
		m.hold != held &&
		len(m.later) == 0 && !m.leaveLater &&
		c.stage == accepting && c.keeps && !c.deaf && !c.orderly && !c.alone
}

func (m *machine) onSettled() {
	if m.mayLinger() && m.lingers == noLingering {
		m.do.makeLeash()
	}
}

// onLeashMade: the child is asked once more whether it is well: after this, nothing is
// rolled back.
func (m *machine) onLeashMade(e evLeashMade) {
	switch {
	case !m.mayLinger():
	case e.err != nil:
		m.do.say(noticeNoLeash, e.err)
	default:
		m.lingers = lingerAsked
		m.ask()
	}
}

// linger begins to linger: the child is well.
func (m *machine) linger() {
	if !m.mayLinger() {
		m.lingers = noLingering
		return
	}
	m.state, m.lingers, m.leaving = lingering, lingered, true
	m.lingerers = nil // the child has their leashes
	m.do.linger()
	m.do.say(noticeLingering, nil)
}

// onceLingering handles what means something else once this process lingers; false if e
// does not.
func (m *machine) onceLingering(e event) bool {
	switch e := e.(type) {
	case evUpgrade:
		m.passUpgradeUp(e.reply)
	case evSignal:
		if m.upgrades.again(e.name, e.at) {
			m.do.sayRepeated(e.name)
		} else {
			m.passUpgradeUp(nil)
		}
	case evStop:
		m.stopLingering(e.stopRequest)
	case evLeash:
		m.onLeash(e)
	case evChildStop: // it was sent before the child knew that this process lingers
		if !e.leave && !e.early {
			m.child.orderly, m.told = true, true
			m.endLingering(e.now)
		}
	case evDeaf:
		m.child.deaf = m.child.deaf || e.ours // else its end follows
	case evExit:
		c := m.child
		m.do.forget()
		m.child = childState{id: c.id}
		if !m.told {
			m.reportDeath(c, e.failure)
		}
	case evClaims, evSilence, evHungUp, evStuck, evUnasked, evPong, evCheckUp: // the child is on its own
	default:
		return false
	}
	return true
}

// passUpgradeUp passes a request on to the newest process: its sender knows an old pid.
func (m *machine) passUpgradeUp(r reply) {
	m.do.pullLeash(false, false)
	m.do.say(noticePassedUp, nil)
	tell([]reply{r}, fmt.Errorf("grace: Upgrade: %w", ErrHandedOver))
}

// stopLingering: this process alone is to end, unless a supervisor takes it for the
// service.
func (m *machine) stopLingering(r stopRequest) {
	if r.at.IsZero() {
		r.at = m.now()
	}
	if m.repeatedStop(r) {
		return
	}
	if m.state == stopped {
		if r.signal != nil { // the program hangs on its way out: one more signal ends it
			m.do.endSignals()
		}
		return
	}
	if r.byOperator() {
		r.now = r.now || m.stopAsked
		m.stopAsked = true
	}
	m.do.sayStop(noticeStopLingering, r)
	if r.byOperator() && m.do.isService() {
		m.do.pullLeash(true, r.now)
		m.awaitsNewest = !m.leashGone
	}
	m.endLingering(r.now)
}

// onLeash: the newest process has told this one to end, or there is none any more.
func (m *machine) onLeash(e evLeash) {
	if e.gone {
		m.leashGone, m.awaitsNewest = true, false
	}
	switch {
	case m.state == stopped:
		return
	case m.state == holding && e.gone:
		m.endHold()
		return
	case e.gone && m.told: // the others were told to end as well
	case e.gone:
		m.do.say(noticeLeashGone, nil)
	default:
		m.told = true
		m.do.say(noticeLeashEnds, nil)
	}
	m.endLingering(e.now)
}

// endLingering gives what is left its DrainTimeout, once, or cuts it off at once.
func (m *machine) endLingering(now bool) {
	if m.state != lingering {
		return
	}
	if !m.limited {
		m.limited = true
		m.do.limitDrain()
	}
	if now {
		m.do.hurryDrain()
	}
}

// onParentLingers: the parent has finished with this process, which may be upgraded
// itself from now on.
func (m *machine) onParentLingers() {
	if m.parent != parentAlive && m.parent != parentFinished {
		return
	}
	m.parent = parentLingers
	m.lingerers = append(m.lingerers, lingerer{pid: m.parentPid})
	m.do.say(noticeParentLingers, nil)
	if m.stop == stopService {
		m.endLingerers(false)
	}
	m.trimLingerers()
	m.settle()
}

// trimLingerers tells the oldest to end, if more linger than may.
func (m *machine) trimLingerers() {
	for i := range max(0, len(m.lingerers)-m.limits.processes) {
		if l := &m.lingerers[i]; !l.told {
			m.do.sayOfLingerer(noticeTooMany, l.pid)
			m.endLingerer(l, false)
		}
	}
}

// endLingerers tells all of them that the service ends.
func (m *machine) endLingerers(now bool) {
	for i := range m.lingerers {
		if l := &m.lingerers[i]; now || !l.told {
			m.endLingerer(l, now)
		}
	}
}

// endLingerer tells l to end. It may take its DrainTimeout, and its program some time to
// exit; if it hangs, nothing waits for it any longer.
func (m *machine) endLingerer(l *lingerer, now bool) {
	if !l.told {
		m.do.after(m.limits.drain+m.limits.exit(), evLingererStuck{l.pid})
	}
	l.told = true
	m.do.endLingerer(l.pid, now)
}

// onWatched: the process pid, which lingers, waits for the end of this one, and of the
// other one of a hand-over. So neither waits for it.
func (m *machine) onWatched(e evWatched) {
	for i := range m.lingerers {
		if l := &m.lingerers[i]; l.pid == e.pid {
			l.watched = true
		}
	}
	m.endHold()
}

func (m *machine) onLingererStuck(e evLingererStuck) {
	for i := range m.lingerers {
		if l := &m.lingerers[i]; l.pid == e.pid && l.told && !l.stuck {
			l.stuck = true
			m.do.sayOfLingerer(noticeLingererStuck, e.pid)
			m.settle()
			m.endHold()
			return
		}
	}
}

func (m *machine) onLingererGone(e evLingererGone) {
	i := slices.IndexFunc(m.lingerers, func(l lingerer) bool { return l.pid == e.pid })
	if i < 0 {
		return
	}
	m.lingerers = slices.Delete(m.lingerers, i, i+1)
	m.do.sayOfLingerer(noticeLingererGone, e.pid)
	m.settle()
	m.endHold()
}

// Part 5: stop, drain, and the end of a process.

// A stopRequest asks this process to end.
type stopRequest struct {
	signal   os.Signal // nil if it was not a signal
	at       time.Time // when it has arrived; zero is now
	now      bool      // cut off what is left at once
	passedOn bool      // the other process of a hand-over was told first
	leave    bool      // only this process is to end, not the service
	watched  int       // from this process, which lingers and is the service in a supervisor's eyes; else 0
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
	if r.watched != 0 {
		m.do.tellWatched(r.watched) // both processes of a hand-over have its leash, and only one hears it
		m.onWatched(evWatched{r.watched})
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
	handedOver := m.state == standingBy || m.state == draining || m.child.went() && m.child.stage != leaving && m.child.killReason == nil && m.state != acquiring
	if r.leave {
		m.stop = max(m.stop, stopLeave)
	} else {
		m.stop = stopService
	}
	m.do.stopping(!r.leave)
	if r.byOperator() { // said when it holds: from here on this process does not become ready
		m.do.sayStop(noticeStopBegins, r)
		tell(m.take(atMaster), nil) // how an upgrade by a master succeeds
	}
	if !r.leave {
		m.endLingerers(r.now)
	}
	if !r.leave && m.state == upgrading && (m.child.stage == launching || m.child.stage == preparing) {
		m.do.say(noticeGivenUp, nil)
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
		if m.state == upgrading { // it accepts at any moment
			m.do.leaveEnd()
		}
		m.beginDrain(r.leave) // else the child is to stop as well
		m.answer(nil)
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
	if m.has(wanted) {
		m.do.say(noticeTooLate, nil)
	}
	tell(m.take(underWay, wanted, atMaster), fmt.Errorf("grace: Upgrade: %w", ErrStopped))
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
// is being started must be known, so that it can be killed. If this process ended before
// systemd knows that the child is the service, the service would end. At the end of the service those
// that linger are to drain in peace: whoever watches the service, by this process or by the
// lock of the PID file, takes it for over when this one has ended, and kills what is left, or
// closes its log. systemd knows the child as little. If it is one of those that lingers which
// is watched so, that one waits for this process.
func (m *machine) mustHold() bool {
	switch {
	case m.child.stage == launching, m.awaitsNewest, m.leaving:
		return true
	case m.stop != stopService:
		return false
	case slices.ContainsFunc(m.lingerers, func(l lingerer) bool { return !l.stuck && !l.watched }):
		return true
	}
	return m.child.went() && m.do.hasServiceManager()
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
