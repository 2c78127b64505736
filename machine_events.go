package grace

import "time"

// What goes into the state machine, and what comes out: events and effects.

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
	linger()                               // leave all but what is open to the child, and say so
	limitDrain()                           // of this process, which lingers, to DrainTimeout from now
	pullLeash(stop, now bool)              // tell the newest process that the service is to stop, or to upgrade
	endLingerer(pid int, now bool)         // an older process that lingers is to end
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
	evLeashMade struct { // or not
		id  int
		err error
	}
	evSettled struct{ id int } // the drain has had its time before this process lingers
	evLeash   struct {         // this process lingers, and is told to end
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
		early bool // it was told before it had go
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
