package grace

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"
)

// Alive and well are two things: a new process that is stopped, or hangs, has
// accepted the hand-over and serves nobody. So old asks, when probation is over
// and from then on until it exits, and new answers through the goroutine that
// owns its state. One that does not answer is killed, and the hand-over is
// rolled back.
//
// What if the channel between them does not work any more, though both live?
// Then new can't be judged, and which one must give way depends on how far they
// have come:
//
//   - Before new accepts, and during probation, old is the one to trust: new is
//     killed, and when it is proven to be dead old serves on. Old has never
//     stopped to accept, or it accepts again then. New, for its part, does not
//     begin to accept when it can't hear old, and old lives.
//   - Later new has proven that it is well. If it is old that can't read, it
//     moves nothing more, finishes what it has, and exits: new serves in any
//     case, and takes nothing for its own before old is proven to be dead. If
//     it is new that has closed the channel, or writes nonsense, it is killed.

const (
	// pongPatience is how long an answer may take. It is the time of an outage if
	// new is stopped, and far more than a machine that is merely busy takes. It
	// is counted in steps, so that it is not over if old itself was stopped.
	pongPatience = 10 * time.Second
	pongSteps    = 10
	// pingEvery is how often a draining process asks, besides at its end.
	pingEvery = 5 * time.Second
	// killPatience is how long a process that was killed may take to be gone.
	killPatience = 5 * time.Second
	longestRetry = time.Minute // between two tries to kill
)

// ask asks new whether it is well; then is called when it has answered, or needs
// not to: its version does not know the question, it ends, or old can't hear it.
func (u *Upgrader) ask(s *successor, then func()) {
	if s.mute() {
		then()
		return
	}
	s.pings++
	s.waiting = append(s.waiting, then)
	s.ch.sendWithin(u.pongPatience/2, newMessage(msgPing, nil), func(err error) {
		if err != nil {
			go u.post(func() { u.onUnasked(s, err) })
		}
	})
	if len(s.waiting) == 1 {
		u.awaitPong(s, s.pongs, pongSteps)
	}
}

// onUnasked: new was not asked. If that is its own doing, since it does not read, it
// has not answered. If the kernel takes nothing from this process, new may be as
// well as ever: it serves, and this process, which can't be trusted with the
// connections that it would take back, finishes what it has.
func (u *Upgrader) onUnasked(s *successor, err error) {
	if s != u.next || s.mute() || !isOurs(err) || errors.Is(err, errNotRead) || errors.Is(err, errCutShort) {
		return
	}
	s.deaf = err
	s.mover.stop()
	u.log.Warn("grace: the new process can't be asked whether it is well; this one moves no connection, and exits when it has drained", "new", s.proc.pid(), "err", err)
	u.unask(s)
}

// tellPatience is less than what the end of this process waits for what is queued.
const tellPatience = 900 * time.Millisecond

// tellPeer sends m to the other process of a hand-over, and logs what could not be
// sent in time while that process lives: what is missing there, the operator knows
// then.
func (u *Upgrader) tellPeer(ch *channel, pid int, m message, what string) {
	ch.sendWithin(tellPatience, m, func(err error) {
		if err != nil && isOurs(err) {
			u.log.Error("grace: the other process of the hand-over can't be told", "what", what, "peer", pid, "err", err, "do", "send it the signal yourself")
		}
	})
}

// isOurs reports whether err, of the control channel, is this process's trouble,
// and not the end of the other one, or what that has sent.
func isOurs(err error) bool {
	for _, theirs := range []error{io.EOF, io.ErrUnexpectedEOF, ErrProtocol, errConnReset, errBrokenPipe, net.ErrClosed} {
		if errors.Is(err, theirs) {
			return false
		}
	}
	return true
}

// mute says whether new is not to be asked.
func (s *successor) mute() bool {
	return s.claims == nil || !s.claims.Pongs || s.orderly || s.left || s.deaf != nil
}

// awaitPong counts the steps. pongs is how many had come when it began.
func (u *Upgrader) awaitPong(s *successor, pongs, steps int) {
	s.silence = time.AfterFunc(u.pongPatience/pongSteps, func() {
		u.post(func() {
			switch {
			case s != u.next || len(s.waiting) == 0 || s.mute() || s.killed != nil:
			case s.pongs != pongs:
				u.awaitPong(s, s.pongs, pongSteps)
			case steps > 1:
				u.awaitPong(s, pongs, steps-1)
			case u.stopAsked: // the service ends in any case
				u.unask(s)
			default:
				s.told = errors.Join(s.told, fmt.Errorf("it did not answer for %v, and was killed", u.pongPatience))
				u.kill(s, ErrRolledBack)
			}
		})
	})
}

// onPong: new has answered.
func (u *Upgrader) onPong(s *successor) {
	if s.pongs++; s.pongs == s.pings {
		u.unask(s)
	}
}

// unask lets go on what waits for an answer.
func (u *Upgrader) unask(s *successor) {
	waiting := s.waiting
	s.waiting = nil
	if s.silence != nil {
		s.silence.Stop()
	}
	for _, then := range waiting {
		then()
	}
}

// checkUp asks while d drains, again and again.
func (u *Upgrader) checkUp(s *successor, d *drain) {
	if s != u.next || d != u.drain || u.state != draining || u.stopAsked {
		return
	}
	if len(s.waiting) == 0 {
		u.ask(s, func() {})
	}
	time.AfterFunc(pingEvery, func() { u.post(func() { u.checkUp(s, d) }) })
}

// onStuck: connections can't be moved any more. Those that were on their way are
// served here.
func (u *Upgrader) onStuck(s *successor, err error) {
	if s != u.next || s.mute() || errors.Is(err, errBrokenPipe) || errors.Is(err, net.ErrClosed) {
		return // it is dead, or ends
	}
	u.log.Warn("grace: connections can't be moved to the new process any more; this one finishes them", "new", s.proc.pid(), "err", err)
	if len(s.waiting) == 0 {
		u.ask(s, func() {})
	}
}

// onDeaf: the channel was read to its end, or can't be read. The end of new is
// told by the kernel, not by that.
func (u *Upgrader) onDeaf(s *successor, err error) {
	if s != u.next || errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, net.ErrClosed) {
		return // it is dead, and was reaped: onExit follows
	}
	switch {
	case u.mayServe(s):
		u.onHungUp(s, fmt.Errorf("the control channel has ended: %w", err))
	case s.orderly || s.left || u.stopAsked:
		s.deaf = err
		u.unask(s)
	case isOurs(err) && u.state != yielded:
		s.deaf = err
		u.log.Warn("grace: the new process can't be heard any more; this one moves no connection, and exits when it has drained", "new", s.proc.pid(), "err", err)
		u.unask(s)
	default:
		u.hangUpLater(s, fmt.Errorf("the control channel has ended: %w", err))
	}
}

// hangUpLater kills new if it is not gone in a moment: the end of a process
// closes its end of the channel first, and its exit status says more.
func (u *Upgrader) hangUpLater(s *successor, why error) {
	time.AfterFunc(hungUpGrace, func() {
		u.post(func() {
			if s == u.next && s.killed == nil && !s.left && !s.orderly && u.state != stopped && !u.stopAsked {
				s.told = errors.Join(s.told, why)
				u.kill(s, ErrRolledBack)
			}
		})
	})
}

// kill ends the new process; onExit follows.
func (u *Upgrader) kill(s *successor, why error) {
	if s.killed == nil {
		s.killed = why
	}
	u.tryKill(s, time.Second)
}

// tryKill kills new, and looks after pause whether it is gone.
func (u *Upgrader) tryKill(s *successor, pause time.Duration) {
	err := s.proc.kill()
	if errors.Is(err, os.ErrProcessDone) {
		err = nil
	}
	again := pause
	if err == nil {
		again = max(pause, killPatience)
	} else {
		u.onUnkillable(s, err)
	}
	time.AfterFunc(again, func() {
		u.post(func() {
			if s != u.next || s.killed == nil {
				return
			}
			if err == nil {
				u.onUnkillable(s, fmt.Errorf("it is there still, %v after SIGKILL", again))
			}
			u.tryKill(s, min(2*pause, longestRetry))
		})
	})
}

// onUnkillable: new can't be killed, or does not end by that. Who waits for the
// upgrade is told; it goes on to be tried. Before new has accepted, old has it
// all and waits: two new ones at once must not be. Afterwards somebody must
// accept, which is old.
func (u *Upgrader) onUnkillable(s *successor, err error) {
	if s.unkillable {
		return
	}
	s.unkillable = true
	u.log.Error("grace: the new process can't be killed; it is tried again and again", "new", s.proc.pid(), "err", err,
		"do", fmt.Sprintf("end it by hand (kill -9 %d); until then no upgrade begins", s.proc.pid()))
	failure := &UpgradeError{Reason: s.killed, Pid: s.proc.pid(), Err: errors.Join(s.told, fmt.Errorf("it can't be killed: %w", err))}
	if s.accepted && !s.left && !s.orderly && !u.stopAsked && u.state != stopped {
		s.left, s.since = true, time.Now()
		s.mover.stop()
		failure.Reason = ErrRolledBack
		u.rollBack(failure)
		return
	}
	u.answer(failure)
}
