package grace

import "time"

// The state machine of a process: events in, effects out. What happens reaches
// the method on, one event at a time, from the goroutine that owns the Upgrader's
// state; what is to be done leaves through effects, none of which waits for
// anything outside. The machine knows no process, no socket, no log and no clock,
// so that every state can be tested with every event (machine_test.go).
//
//	starting ── ready ──> serving <──────────── child failed ─────┐
//	                       │   ^                                  │
//	                       │   └── rolled back, resumed ──────┐   │
//	                 upgrade asked                            │   │
//	                       └──> upgrading ── child accepts ─> standingBy
//	                                                          │ probation is over
//	  stop, in any state ──── (lameDuck) ───────> draining <──┘
//	                                                 │ child dies: resuming, then serving
//	                                                 ├── drained ──────────────────> stopped
//	                                                 └── long streams left ─> lingering ─┘
//
// This file has the states, the events and the effects; machine_steps.go has what each
// event leads to, in five parts: an upgrade and the way back, how exclusive state changes
// hands, whether the child is well, lingering, and how a process ends. What each state does
// at each event: testdata/machine.txt.
//
// The goroutine that calls on is the only one that changes the machine, so it has no
// mutex. The package has six, and takes no two of them together:
//
//	inUse.mu     held while New waits for that goroutine, which never takes it
//	pidFile.mu   held while the disk is waited for: that goroutine never takes it
//	extras.mu    held while Set.mu of internal/sockets is taken
//	runs.mu, leashes.mu, probes.mu: held for a moment, and none is taken meanwhile
//
// internal/sockets and internal/serve have the order of theirs in their doc.go.
//
// There is room for what this process does not do yet. A child that this process did not
// start: a childStage that begins at preparing, and has no kill. A follower: a state after
// stopped.

// A state tells what this process does with its sockets.
type state int

const (
	starting   state = iota // the listeners wait for Ready
	serving                 // accepts
	upgrading               // accepts, while a child starts
	releasing               // no process accepts: exclusive state goes to the child
	acquiring               // no process accepts: exclusive state comes back
	standingBy              // the child accepts: probation
	lameDuck                // accepts, though told to stop, and sends clients away
	draining                // finishes what it has begun
	resuming                // accepts; the servers return from a drain that was called off
	lingering               // finishes long streams; the child is on its own
	holding                 // drained, and kept alive until a child has ended, or is known
	stopped                 // Done
)

func (s state) String() string {
	return [...]string{"starting", "serving", "upgrading", "releasing", "acquiring", "standingBy", "lameDuck", "draining", "resuming", "lingering", "holding", "stopped"}[s]
}

// A childStage tells how far the new process has come.
type childStage int

const (
	noChild   childStage = iota
	launching            // a process may exist that is not known yet
	preparing            // it runs, and has not reported that it is ready
	going                // it was told to go: it may accept, and name itself in the PID file
	accepting            // it has reported that it accepts
	leaving              // it has given up after that, and drains
)

func (s childStage) String() string {
	return [...]string{"no child", "launching", "preparing", "going", "accepting", "leaving"}[s]
}

// A childState is what the machine knows of the new process.
type childState struct {
	id    int // of this start: events of an earlier child name another one
	pid   int
	stage childStage
	since time.Time // when it began to accept, or to leave

	line       bool // the ready line has come
	claimed    bool // its claims have come
	pongs      bool // it answers when it is asked whether it is well
	keeps      bool // it keeps the leash of this process, should this one linger
	exclusive  bool // it waits for exclusive state before it accepts
	orderly    bool // it was asked to stop: its end is no reason to roll back
	alone      bool // an operator has told this process to end while the child serves on
	handedOver bool // it has a child of its own that serves
	deaf       bool // this process can't hear it any more; it lives
	unkillable bool // a kill has failed
	heir       bool // this process gives up, and the child is to serve when it is ready
	judged     bool // probation is over, and it is asked whether it is well

	killReason error // why it was killed, one of the Err values
	lastError  error // the reason that it gave for giving up, or what is wrong with it

	asked, answered int  // how often it was asked whether it is well, and has answered
	waited          bool // an answer is waited for
}

func (c *childState) went() bool     { return c.stage >= going }
func (c *childState) accepted() bool { return c.stage >= accepting }

// mute reports whether the child is not to be asked whether it is well: its
// version does not know the question, it ends, or it can't be heard.
func (c *childState) mute() bool { return !c.pongs || c.orderly || c.stage == leaving || c.deaf }

// A parentStage tells what has become of the old process.
type parentStage int

const (
	noParent parentStage = iota // this is a first process
	parentAlive
	parentLingers  // it has finished with this process
	parentFinished // it has nothing of the service any more, and is to exit
	parentStuck    // it has not exited in time: it is waited for no more
	parentGone
)

// A stopStage tells what this process was told to end.
type stopStage int

const (
	notStopping stopStage = iota
	stopLeave             // only this process is to end
	stopService           // the service is
)

// A drainStage tells how far the drain has come.
type drainStage int

const (
	noDrain   drainStage = iota
	running              // the servers drain; in the state resuming: it was called off, and they stop doing so
	over                 // nothing is left, and the child is asked whether it is well
	returning            // the servers are put back to how they were before
)

// A machine is owned by one goroutine.
type machine struct {
	do  effects
	now func() time.Time

	// What does not change.
	underMaster bool // upgrades are a master's to do
	supported   bool // this platform can hand sockets over
	exclusive   bool // there is exclusive state
	parentPid   int
	limits      limits

	state      state
	child      childState
	parent     parentStage
	stop       stopStage
	stopAsked  bool                     // an operator has asked for the stop: one more request cuts off
	program    struct{ ends, now bool } // the program has asked for the end while the child serves on
	drain      drainStage
	hurried    bool // the drain that is to begin cuts off at once
	leaveLater bool // this process gives up as soon as the child accepts, or is dead
	gaveUp     bool // this process has given up, and its parent serves on
	ended      bool // Done is closed
	lingers    lingerStage
	limited    bool // this process lingers, and has DrainTimeout from when it was told to end
	told       bool // it lingers, and the process that serves has told it to end
	leaving    bool // it lingers, and is still telling others that the child is the service now
	// It lingers, a supervisor takes it for the service, and it has passed a stop on to the
	// process that serves, for the end of which it waits.
	awaitsNewest bool
	leashGone    bool       // no process has the other end of its leash any more
	lingerers    []lingerer // older processes that linger, the oldest first
	restoring    int        // how many roll backs have not put everything back

	hold holdStage
	back struct { // in acquiring: what is told when this process accepts again
		notice notice
		err    error
	}
	moving bool          // what waited is on its way to the child, which accepts
	later  []stopRequest // in releasing, and while moving: see postpone

	requests []request // for an upgrade

	stops, upgrades repeats
}

// limits are durations from the options.
type limits struct {
	ready, probation, drain time.Duration
	lame                    time.Duration // how long to go on accepting at a stop
	pong                    time.Duration // how long an answer of the child may take
	settle                  time.Duration // of the drain, before this process lingers
	processes               int           // that may linger; 0: this one does not
	exclusive               time.Duration // of each step by which exclusive state changes hands
	cuts                    bool          // what is not finished in that time is cut off; else the upgrade fails
}

// exit is how long a program may take to exit when its process has finished.
func (l limits) exit() time.Duration { return max(time.Second, l.drain) }

// A request asks for an upgrade. Several of one stage are one: they have one result.
type request struct {
	reply reply
	stage requestStage
}

// A reply takes the result of a call of Upgrade; it is nil if a signal has asked.
type reply = chan error

// A requestStage tells how far a request has come.
type requestStage int

const (
	wanted   requestStage = iota // as soon as nothing is in its way
	underWay                     // the child that it has started is not judged yet
	atMaster                     // a master was asked
	handedOn                     // passed on to the child; wanted again if that dies
)

// on handles one event.
func (m *machine) on(e event) {
	if id, ok := childOf(e); ok && (id != m.child.id || m.child.stage <= launching) {
		return // of a child that is gone
	}
	if m.lingers == lingered && m.onceLingering(e) {
		return
	}
	switch e := e.(type) {
	case evReady:
		err := m.onReady()
		e.reply <- err // the program goes on before the rest is done
		if err == nil {
			m.onServing()
		}
	case evUpgrade:
		m.onUpgrade(e.reply)
	case evSignal:
		m.onSignal(e)
	case evStop:
		m.onStop(e.stopRequest)
	case evParentGone:
		m.onParentGone()
	case evParentLingers:
		m.onParentLingers()
	case evLingererStuck:
		m.onLingererStuck(e)
	case evLingererGone:
		m.onLingererGone(e)
	case evWatched:
		m.onWatched(e)
	case evLeashMade:
		m.onLeashMade(e)
	case evSettled:
		m.onSettled()
	case evLeft:
		m.leaving = false
		m.endHold()
	case evPing:
		m.do.sendPong()
	case evMain:
		m.onMain()
	case evParentStuck:
		m.onParentStuck()
	case evMasterAsked:
		m.onMasterAsked(e)
	case evMasterLate:
		m.answerAsked(e.replies, e.err)
	case evMasterGone:
		m.onMasterGone()
	case evLaunched:
		m.onLaunched(e)
	case evLine:
		m.onLine(e)
	case evClaims:
		m.onClaims(e)
	case evTakes:
		if m.state == draining || m.state == releasing {
			m.do.offer()
		}
	case evAccepting:
		m.onAccepting(e)
	case evFailed:
		m.child.lastError = e.why
	case evChildStop:
		m.onChildStop(e)
	case evHandedOver:
		m.child.handedOver = !e.gone
	case evPong:
		m.onPong()
	case evUnasked:
		m.onUnasked(e)
	case evStuck:
		m.onStuck(e)
	case evDeaf:
		m.onDeaf(e)
	case evExit:
		m.onExit(e)
	case evLate:
		m.onLate(e)
	case evHungUp:
		m.onHungUp(e)
	case evGone:
		if m.child.stage == leaving {
			m.kill(ErrRolledBack)
		}
	case evProbationOver:
		m.onProbationOver(e)
	case evCheckUp:
		m.onCheckUp()
	case evSilence:
		m.onSilence(e)
	case evKillAgain:
		m.onKillAgain(e)
	case evLameOver:
		if m.state == lameDuck {
			m.beginLastDrain(stopRequest{})
		}
	case evDrained:
		m.onDrained()
	case evResumed:
		m.onResumed()
	case evRestored:
		m.onRestored()
	case evFinished:
		m.onFinished()
	case evPauseLate:
		m.onPauseLate(e)
	case evMoved:
		m.onMoved()
	case evReleased:
		m.onReleased(e)
	case evAcquired:
		m.onAcquired(e)
	}
}

// effects are what the machine wants to be done. None of them waits.
type effects interface {
	openGates() error // begin to accept, for the first time
	closeGates()      // stop accepting; the child has what it has claimed
	reopenGates()     // accept again
	mend()            // open again what the child may have spoiled while it started
	leaveToChild()    // closeGates, but of a child that has not claimed yet: all
	leaveEnd()        // of the sockets to the child, which may accept at any moment, until it hears that the service ends
	letGo()           // give up the listeners: the child has them
	disown()          // leave the queues to the parent

	pause()         // closeGates of all sockets, finish what has begun, hold what can move: evDrained
	moveHeld()      // to the child, which accepts: evMoved
	release()       // the exclusive state: evReleased
	acquire()       // have it back: evAcquired
	lose(err error) // it can't be had back: tell of it

	launch(id int)                         // start a child: evLaunched
	sendGo()                               // the child may accept
	sendUpgrade()                          // the child is to upgrade, when this process is gone
	sendStop(now bool)                     // the child is to stop as well
	ping()                                 // evPong, or evUnasked
	examine(probation time.Duration)       // watch how the child does for that long: evProbationOver
	stopMoves()                            // of connections to the child
	tellParentOfChild(serves bool)         // so that the end of this process is none of the service
	sendParentStop(now bool)               // the parent is to stop as well
	sendParentLeave()                      // this process gives up; the parent is to serve on
	sendPong()                             // this process is well
	makeLeash()                            // by which newer processes can reach this one: evLeashMade
	linger()                               // leave all but what is open to the child, and say so: evLeft
	limitDrain()                           // of this process, which lingers, to DrainTimeout from now
	pullLeash(stop, now bool)              // tell the newest process that the service is to stop, or to upgrade
	endLingerer(pid int, now bool)         // an older process that lingers is to end
	tellWatched(pid int)                   // the parent and the child: an older process that lingers waits for them too
	becomeMain()                           // the parent has told the service manager that this process is the main one now
	kill() error                           // SIGKILL to the child
	forget()                               // the child is dead and was reaped
	askMaster(replies []reply)             // for an upgrade: evMasterAsked
	restore(r []reply, n notice, by error) // put back what the child had taken, answer, and give notice: evRestored

	goLame()                  // send clients away, and accept still
	beginDrain(move bool)     // evDrained
	offer()                   // the servers move what the child takes by now
	hurryDrain()              // cut off what is left
	cancelDrain()             // evDrained comes sooner
	resume()                  // the servers serve as before: evResumed
	stopping(service bool)    // from now on new requests are refused
	finish(gaveUp, last bool) // end everything: evFinished; last: no other process of the service is there
	done()                    // close Done
	endSignals()              // one more signal has its default action

	after(d time.Duration, e event)
	say(n notice, err error)
	sayStop(n notice, r stopRequest)
	sayRepeated(signal string) // the signal has counted already
	sayOfLingerer(n notice, pid int)

	isService() bool         // a supervisor takes this process for the service
	hasServiceManager() bool // systemd is told what happens
}

// An event is something that has happened.
type event any

type (
	evReady   struct{ reply reply } // the program has called Ready, and all is agreed
	evUpgrade struct{ reply reply } // the program has called Upgrade
	evSignal  struct {              // a signal asks for an upgrade
		name string
		at   time.Time
	}
	evStop          struct{ stopRequest }
	evParentGone    struct{}
	evParentLingers struct{}          // it has said so
	evLingererStuck struct{ pid int } // it was told to end, and has had its time since then
	evLingererGone  struct {          // an older process that lingered has ended
		pid int
	}
	evWatched   struct{ pid int } // one that lingers waits for this process, as its peer has heard
	evLeashMade struct {          // or not
		id  int
		err error
	}
	evSettled struct{ id int } // the drain has had its time before this process lingers
	evLeft    struct{}         // this process lingers, and all that must know have heard that the child is the service
	evLeash   struct {         // it is told to end
		now  bool
		gone bool // no newer process is left that could tell it
	}
	evPing        struct{} // the parent asks whether this process is well
	evMain        struct{} // the parent has finished, and has made this process the main one
	evParentStuck struct{} // it has had its time to exit since then
	evMasterAsked struct { // for an upgrade
		replies []reply
		err     error
	}
	evMasterLate struct { // it has not replaced this process
		replies []reply
		err     error
	}
	evMasterGone struct{}

	evLaunched struct { // a child runs, or could not be started
		pid int
		age time.Duration
		err error
	}
	evLine struct { // the readiness pipe has said something, or was closed
		id   int
		line string
		err  error
	}
	evClaims struct { // the child has reported which sockets it takes
		id        int
		pongs     bool
		keeps     bool
		exclusive bool  // it waits for exclusive state
		err       error // they make no sense
	}
	evTakes     struct{ id int } // the child takes moved connections on more sockets
	evAccepting struct {         // the child accepts
		id int
		at time.Time
	}
	evFailed struct { // the child reports why it gives up
		id  int
		why error
	}
	evChildStop struct { // the child begins to end
		id    int
		at    time.Time
		now   bool // it cuts off what is left
		leave bool // it gives up by itself; else it was told to stop the service
		early bool // it was told before it took go
	}
	evHandedOver struct { // a child of the child serves, or no more
		id   int
		gone bool
	}
	evPong    struct{ id int }
	evUnasked struct { // this process can't send it the question
		id  int
		err error
	}
	evStuck struct { // connections can't be moved any more
		id  int
		err error
	}
	evDeaf struct { // the channel has ended, or can't be read
		id   int
		err  error
		ours bool // it is this process that can't read it
	}
	evExit struct { // the child has ended and was reaped
		id      int
		failure *UpgradeError // Pid, State and Err are set
		killed  bool          // by SIGKILL
	}

	evLate struct { // the ready timeout is up
		id    int
		went  bool          // it began at go
		limit time.Duration // that is up; 0: ReadyTimeout
	}
	evHungUp struct { // the child has closed something a moment ago
		id  int
		why error
	}
	evGone          struct{ id int } // the child has had its time to leave
	evProbationOver struct {         // or the child is sick, which may be known sooner
		id   int
		sick error // what is wrong with it; nil: nothing that was seen
	}
	evCheckUp   struct{ id int }
	evSilence   struct{ id, answered, steps int }
	evKillAgain struct {
		id    int
		pause time.Duration
		err   error
	}

	evLameOver  struct{}         // the time to go on accepting is up
	evPauseLate struct{ id int } // what has begun was not finished in time
	evReleased  struct{ err error }
	evMoved     struct{ id int } // no connection that waited is on its way any more
	evAcquired  struct{ err error }

	evDrained  struct{}
	evResumed  struct{}
	evRestored struct{}
	evFinished struct{}
)

// A notice is a step that is told outside: to the log, the service manager, the
// master. Each is told once.
type notice int

const (
	noticeServing notice = iota
	noticeAsked
	noticeQueued
	noticeTooLate
	noticePassedOn
	noticeUnsupported
	noticeUpgradeBegins
	noticeStarted
	noticeStandingBy
	noticeUpgradeDone
	noticeFailed
	noticeGivenUp
	noticeRolledBack
	noticeSick
	noticeStuck
	noticeUnasked
	noticeGivesUp
	noticeHeirServes
	noticeHeirDied
	noticeDeaf
	noticeUnkillable
	noticeParentGone
	noticeParentStuck
	noticeMasterAsked
	noticeMasterRefused
	noticeMasterGone
	noticeStopBegins
	noticeStopIgnored
	noticeStopAlone
	noticeStopPassedOn
	noticeDrained
	noticeDied
	noticeDiedUnheard
	noticeLingering
	noticePassedUp
	noticeNoLeash
	noticeLeashEnds
	noticeLeashGone
	noticeStopLingering
	noticeParentLingers
	noticeTooMany
	noticeLingererGone
	noticeLingererStuck
	noticeReleasing
	noticePauseCuts
	noticePauseRefuses
)

func (n notice) String() string {
	return [...]string{
		noticeServing:       "serving",
		noticeAsked:         "asked",
		noticeQueued:        "queued",
		noticeTooLate:       "too late",
		noticePassedOn:      "passed on",
		noticeUnsupported:   "unsupported",
		noticeUpgradeBegins: "upgrade begins",
		noticeStarted:       "started",
		noticeStandingBy:    "standing by",
		noticeUpgradeDone:   "upgrade done",
		noticeFailed:        "failed",
		noticeGivenUp:       "given up",
		noticeRolledBack:    "rolled back",
		noticeSick:          "sick",
		noticeStuck:         "stuck",
		noticeUnasked:       "unasked",
		noticeGivesUp:       "gives up",
		noticeHeirServes:    "heir serves",
		noticeHeirDied:      "heir died",
		noticeDeaf:          "deaf",
		noticeUnkillable:    "unkillable",
		noticeParentGone:    "parent gone",
		noticeParentStuck:   "parent stuck",
		noticeMasterAsked:   "master asked",
		noticeMasterRefused: "master refused",
		noticeMasterGone:    "master gone",
		noticeStopBegins:    "stop begins",
		noticeStopIgnored:   "stop ignored",
		noticeStopAlone:     "stop alone",
		noticeStopPassedOn:  "stop passed on",
		noticeDrained:       "drained",
		noticeDied:          "died",
		noticeDiedUnheard:   "died unheard",
		noticeLingering:     "lingering",
		noticePassedUp:      "passed up",
		noticeNoLeash:       "no leash",
		noticeLeashEnds:     "told to end",
		noticeLeashGone:     "leash gone",
		noticeStopLingering: "stop lingering",
		noticeParentLingers: "parent lingers",
		noticeTooMany:       "too many linger",
		noticeLingererGone:  "lingerer gone",
		noticeLingererStuck: "lingerer stuck",
		noticeReleasing:     "releasing",
		noticePauseCuts:     "pause cuts",
		noticePauseRefuses:  "pause refuses",
	}[n]
}

// childOf returns the child that an event is about.
func childOf(e event) (id int, ok bool) {
	switch e := e.(type) {
	case evLine:
		return e.id, true
	case evClaims:
		return e.id, true
	case evTakes:
		return e.id, true
	case evAccepting:
		return e.id, true
	case evFailed:
		return e.id, true
	case evChildStop:
		return e.id, true
	case evHandedOver:
		return e.id, true
	case evPong:
		return e.id, true
	case evLeashMade:
		return e.id, true
	case evSettled:
		return e.id, true
	case evUnasked:
		return e.id, true
	case evStuck:
		return e.id, true
	case evDeaf:
		return e.id, true
	case evExit:
		return e.id, true
	case evLate:
		return e.id, true
	case evHungUp:
		return e.id, true
	case evGone:
		return e.id, true
	case evProbationOver:
		return e.id, true
	case evCheckUp:
		return e.id, true
	case evSilence:
		return e.id, true
	case evKillAgain:
		return e.id, true
	case evPauseLate:
		return e.id, true
	case evMoved:
		return e.id, true
	}
	return 0, false
}
