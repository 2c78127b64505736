package grace

import (
	"fmt"
	"slices"
	"time"
)

// The state machine: lingering. A process that has handed over, and still has long
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
	pid   int
	told  bool // to end
	stuck bool // it did not end in time: it is waited for no more
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
	m.state, m.lingers = lingering, lingered
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
	}
	m.endLingering(r.now)
}

// onLeash: the newest process has told this one to end, or there is none any more.
func (m *machine) onLeash(e evLeash) {
	switch {
	case m.state == stopped:
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
