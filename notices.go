package grace

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/julofinance/grace/v3/internal/master"
)

// How each step is reported: to the log, to systemd, and to a master.

// say reports that a step was done. What it names belongs to the state at that
// moment. The line and the event say the same: what both have is the event's.
func (p performer) say(n notice, err error) {
	e := p.eventOf(n, err)
	p.sayToOperator(n, e, err)
	if e.Kind != 0 {
		p.u.emit(e)
	}
}

// sayToOperator writes the line. e is the event, if there is one.
func (p performer) sayToOperator(n notice, e Event, err error) {
	u := p.u
	switch n {
	case noticeServing:
		runtime.Gosched() // the caller of Ready goes on first: this takes longer than to accept
		u.log.Info("grace: serving", "pid", os.Getpid(), "generation", u.generation, "sockets", len(u.socks.Snapshot()))
		u.tellMaster()
		u.notify.Ready(u.serves())
		u.runWatchdog()
	case noticeTooLate:
		u.log.Warn("grace: upgrade asked of a process that stops; none is begun")
	case noticeQueued:
		u.log.Info("grace: upgrade queued", "until", u.m.inTheWay())
	case noticePassedOn:
		u.log.Info("grace: upgrade asked of a process that has handed over; passed on", "new", u.m.child.pid)
	case noticeUnsupported:
		u.log.Error("grace: upgrade failed; this process goes on serving", "err", ErrNotSupported)
	case noticeUpgradeBegins:
		u.log.Info("grace: upgrade begins", "pid", os.Getpid(), "generation", u.generation)
		u.notify.Reloading(fmt.Sprintf("%s; generation %d is starting", u.serves(), u.generation+1))
	case noticeStandingBy:
		args := []any{"new", e.Peer, "took", e.Took, "probation", u.opt.probation}
		if u.m.hold == lent {
			args = append(args, "paused", time.Since(u.pausedAt))
		}
		u.log.Info("grace: the new process is ready; standing by", args...)
		u.notify.Status(fmt.Sprintf("%s, on probation; pid %d stands by", u.nextServes(), os.Getpid()))
	case noticeUpgradeDone:
		u.log.Info("grace: upgrade done; draining", "new", u.m.child.pid, "timeout", u.opt.drainTimeout)
		u.notify.Status(fmt.Sprintf("%s; pid %d drains", u.nextServes(), os.Getpid()))
	case noticeFailed:
		if errors.Is(err, ErrStopped) || u.m.stop != notStopping { // a stop may have come since it failed
			u.log.Info("grace: upgrade given up; this process stops", "new", e.Peer, "err", err)
			break
		}
		u.log.Error("grace: upgrade failed; this process goes on serving", "err", err, "hint", advice(err))
		u.tellFailed("the upgrade failed", err)
	case noticeRolledBack:
		u.log.Error("grace: rolled back; this process accepts again", "err", err, "hint", advice(err))
		u.tellFailed("the upgrade was rolled back", err)
	case noticeReleasing:
		u.log.Info("grace: the new process waits for exclusive state; this one finishes what it has begun, and releases it", "new", u.m.child.pid, "timeout", u.opt.exclusive)
	case noticePauseCuts:
		u.log.Warn("grace: not finished in time, and cut off, so that exclusive state can be released", busy(u.socks.Busy())...)
	case noticePauseRefuses:
		u.log.Warn("grace: not finished in time, so that exclusive state is kept, and the upgrade given up", busy(u.socks.Busy())...)
	case noticeDrained:
		u.cut.Store(int64(e.Cut))
		args := []any{"took", e.Took, "moved", e.Moved, "finished", e.Finished, "waited", e.Waited, "cut", e.Cut}
		if e.Cut > 0 {
			u.log.Warn("grace: drained; connections were cut off, see DrainTimeout", args...)
		} else {
			u.log.Info("grace: drained", args...)
		}
	case noticeLingering:
		u.log.Info("grace: lingering with what is left; the new process may be upgraded", "new", u.m.child.pid, "pid", os.Getpid(), "generation", u.generation, "limit", u.opt.linger)
	case noticePassedUp:
		u.log.Info("grace: upgrade asked of a process that lingers; passed on to the one that serves")
	case noticeNoLeash:
		u.log.Error("grace: this process can't linger; the new process can't be upgraded before it has drained", "err", err, "hint", advice(err))
	case noticeLeashEnds:
		u.log.Info("grace: the process that serves tells this one, which lingers, to end", "timeout", u.opt.drainTimeout)
	case noticeLeashGone:
		u.log.Warn("grace: no process of the service is left but those that linger; this one ends", "timeout", u.opt.drainTimeout)
	case noticeParentLingers:
		u.log.Info("grace: the old process lingers; this one may be upgraded", "old", u.m.parentPid, "lingering", len(u.m.lingerers))
	case noticeParentGone:
		u.log.Info("grace: the old process is gone", "old", u.parent.m.Pid)
		u.onMain(false)
	case noticeParentStuck:
		u.log.Warn("grace: the old process has finished, and does not exit; this one does not wait for it any more", "old", u.parent.m.Pid, "after", u.m.limits.exit(),
			"hint", "see what its program does after Done is closed, or Serve or Run has returned; end it, by SIGKILL if need be")
	case noticeMasterAsked:
		u.log.Info("grace: upgrade asked of the master, by SIGHUP", "master", u.master.Name, "masterpid", u.master.Pid)
	case noticeMasterRefused:
		u.log.Error("grace: upgrade failed; this process goes on serving", "err", err, "hint", advice(err))
	case noticeMasterGone:
		u.log.Error("grace: the master is gone; this process goes on serving", "master", u.master.Name, "masterpid", u.master.Pid,
			"hint", master.AdviceMasterGone)
	default:
		p.sayOfChild(n, e, err)
	}
}

// sayOfChild reports what is wrong with the child, or what becomes of it.
func (p performer) sayOfChild(n notice, e Event, err error) {
	log, pid := p.u.log, p.u.m.child.pid
	var failure *UpgradeError
	status := "unknown"
	if errors.As(err, &failure) {
		pid = failure.Pid
		if failure.State != nil {
			status = failure.State.String()
		}
	}
	switch n {
	case noticeStarted:
		log.Info("grace: the new process was started", "new", pid)
	case noticeGivenUp:
		args := []any{"new", pid}
		if pid == 0 {
			args = nil
		}
		log.Info("grace: upgrade given up; this process stops", args...)
	case noticeStuck:
		log.Warn("grace: connections can't be moved to the new process any more; this one finishes them", "new", pid, "err", err)
	case noticeDeaf:
		log.Warn("grace: the new process can't be heard any more; this one moves no connection, and exits when it has drained", "new", pid, "err", err)
	case noticeUnasked:
		log.Warn("grace: the new process can't be asked whether it is well; this one moves no connection, and exits when it has drained", "new", pid, "err", err)
	case noticeUnkillable:
		log.Error("grace: the new process can't be killed; it is tried again and again", "new", pid, "err", err,
			"hint", fmt.Sprintf("end it by hand (kill -9 %d); until then no upgrade begins", pid))
	case noticeSick:
		log.Warn("grace: the new process is not well, and is killed", "new", e.Peer, "err", e.Err)
	case noticeGivesUp:
		log.Warn("grace: this process gives up while a new one is starting; it leaves the sockets to that", "new", pid)
	case noticeHeirServes:
		log.Info("grace: the new process is ready; this one ends", "new", e.Peer, "took", e.Took)
	case noticeHeirDied:
		log.Error("grace: the new process, which was to serve in place of this one, has ended; no process serves", "new", pid, "status", status)
	case noticeStopIgnored:
		log.Info("grace: stop asked of a new process that has given up long ago; this process serves on", "new", pid)
	case noticeDied:
		if p.u.m.state == lingering {
			log.Error("grace: the new process died when this one had handed over for good, and lingers; no process serves", "new", pid, "status", status)
			return
		}
		log.Error("grace: the new process died when this one had finished; no process serves", "new", pid, "status", status)
	case noticeDiedUnheard:
		log.Warn("grace: the new process has ended when this one had finished; it could not say whether another one serves", "new", pid, "status", status)
	}
}

// sayOfLingerer reports what becomes of an older process that lingers.
func (p performer) sayOfLingerer(n notice, pid int) {
	u := p.u
	switch n {
	case noticeTooMany:
		u.log.Info("grace: more processes linger than may; the oldest is told to end", "old", pid, "lingering", len(u.m.lingerers), "most", u.opt.lingerProcesses)
	case noticeLingererStuck:
		u.log.Warn("grace: an old process that lingered was told to end, and has not; it is waited for no more", "old", pid, "lingering", u.m.lingering(),
			"hint", "see what its program does after Done is closed, or Serve or Run has returned; end it, by SIGKILL if need be")
	case noticeLingererGone:
		u.log.Info("grace: an old process that lingered is gone", "old", pid, "lingering", len(u.m.lingerers))
	}
}

// busy gives the first ten of what is not finished, for the log.
func busy(all []string) []any {
	n := len(all)
	return []any{"count", n, "connections", strings.Join(all[:min(n, 10)], ", ")}
}

// sayRepeated reports that a signal is one that has counted already.
func (p performer) sayRepeated(signal string) {
	p.u.log.Info("grace: the same signal again; it counts as one", "signal", signal, "within", sameSignal)
}

// sayStop reports what becomes of a stop that was asked for.
func (p performer) sayStop(n notice, r stopRequest) {
	u := p.u
	switch n {
	case noticeStopBegins:
		if r.signal != nil {
			u.log.Info("grace: stopping", "signal", r.signal, "now", r.now)
		}
		if r.reason != "" {
			u.log.Info("grace: stopping", "reason", r.reason)
		}
	case noticeStopAlone:
		u.log.Info("grace: stop asked of a process that has handed over long ago; only this process ends", "new", u.m.child.pid, "signal", r.signal, "now", r.now)
	case noticeStopLingering:
		u.log.Info("grace: stop asked of a process that lingers; it ends", "signal", r.signal, "now", r.now, "timeout", u.opt.drainTimeout)
	case noticeStopPassedOn:
		u.log.Info("grace: stop asked of a process that has handed over; passed on", "new", u.m.child.pid)
	}
}

// askMaster asks the master for an upgrade. The callers that wait for it are
// answered when it tells this process to drain, or when it does not within the
// ready timeout.
func (p performer) askMaster(replies []reply) {
	u := p.u
	replies = slices.Clone(replies)
	go func() {
		err := u.mayUpgrade(u.ctx)
		if err == nil {
			if err = u.master.Upgrade(); err != nil {
				err = &UpgradeError{Reason: ErrStart, Err: err}
			}
		}
		u.happen(evMasterAsked{replies, err})
		if err == nil {
			late := &UpgradeError{Reason: ErrReadyTimeout, Err: fmt.Errorf("the %s has not replaced this process within %v", u.master.Name, u.opt.readyTimeout)}
			p.after(u.opt.readyTimeout, evMasterLate{replies, late})
		}
	}()
}

// warnIfNeverGone: the program does not exit after Done. The new process waits for it
// before it may be upgraded, as long as this one waits here: see onParentStuck.
func (u *Upgrader) warnIfNeverGone(next int) {
	limit := u.m.limits.exit()
	time.AfterFunc(limit, func() {
		u.log.Warn("grace: this process has finished, and does not exit", "pid", os.Getpid(), "new", next,
			"hint", "see what the program does after Done is closed, or Serve or Run has returned; end this process, by SIGKILL if need be")
	})
}
