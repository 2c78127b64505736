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
// machine_events.go has the events and the effects, machine_upgrade.go what leads from
// one state to the next, machine_exclusive.go how exclusive state changes hands on the
// way, machine_child.go whether the child is well, machine_linger.go lingering, here and
// of older processes, and machine_end.go how a process ends. What each state does at each
// event: testdata/machine.txt.
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
	limited    bool       // this process lingers, and has DrainTimeout from when it was told to end
	told       bool       // it lingers, and the process that serves has told it to end
	lingerers  []lingerer // older processes that linger, the oldest first
	restoring  int        // how many roll backs have not put everything back

	hold holdStage
	back struct { // in acquiring: what is told when this process accepts again
		notice notice
		err    error
	}
	moving bool          // what waited is on its way to the child, which accepts
	later  []stopRequest // in releasing, and while moving: see postpone

	// Requests for an upgrade, by stage: one that is wanted as soon as it can
	// begin, the one under way, and those that a master was asked for.
	pending bool
	waiting []reply
	current []reply
	asked   []reply
	passed  bool // one was passed on to the child; wanted again if that dies

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

// A reply takes the result of a call of Upgrade.
type reply = chan error

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
	case evLeashMade:
		m.onLeashMade(e)
	case evSettled:
		m.onSettled()
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
