package grace

import (
	"context"
	"os"
	"sync"
	"time"

	"github.com/julofinance/grace/v3/internal/control"
	"github.com/julofinance/grace/v3/internal/proc"
)

// The goroutine that owns the state waits for nothing outside: not for a disk, a
// lock, a resolver, a supervisor's socket, nor for the program's own code. What
// may wait for such a thing is done by another goroutine, which posts the result.
// Nor may that one hold a lock meanwhile that the first needs.

const (
	// restorePatience is how long the last line of a roll back waits for what the
	// roll back restores; this process accepts long before.
	restorePatience = time.Second
	// endPatience is how long the end of this process waits for a server's own
	// code, and for the PID file.
	endPatience = 5 * time.Second
)

// restore puts back what the new process may have taken, and what this one had
// closed: the PID file, and listeners. then is called in the loop when all is there,
// or has been waited for long enough.
func (u *Upgrader) restore(then func()) {
	u.restores.Add(1)
	told := then
	then = sync.OnceFunc(func() { told(); u.restores.Done() })
	jobs := []func(){u.retakePIDFile, func() { u.socks.Settled(u.ctx) }}
	go func() {
		late := time.AfterFunc(restorePatience, func() { u.post(then) })
		within(0, jobs...)
		late.Stop()
		if !u.post(func() { then(); u.m.on(evRestored{}) }) {
			then() // the loop has ended, and will not call it
		}
	}()
}

// leavePatience is how long a start may take to give up when its time is over.
const leavePatience = 2 * time.Second

// startOrLeave is start, but for a start that does not heed its context, since a
// disk hangs under the PID file or the binary. Such a start is left behind: it
// must not hold the process up, and what it starts after all is killed.
func (u *Upgrader) startOrLeave(ctx context.Context, id int) (*child, error) {
	type result struct {
		c   *child
		err error
	}
	started := make(chan result, 1)
	go func() {
		c, err := u.start(ctx, id)
		started <- result{c, err}
	}()
	select {
	case r := <-started:
		return r.c, r.err
	case <-ctx.Done():
	}
	patience := time.NewTimer(leavePatience)
	defer patience.Stop()
	select {
	case r := <-started:
		return r.c, r.err
	case <-patience.C:
	}
	go func() {
		if r := <-started; r.err == nil {
			r.c.abandon()
		}
	}()
	return nil, &proc.StuckError{Path: "the start of a new process", Doing: "for the PID file, the binary or a socket"}
}

// within calls each of fs in a goroutine of its own, and returns when all of them
// have returned, or when limit is over; 0 is no limit.
func within(limit time.Duration, fs ...func()) {
	done := make(chan struct{}, len(fs))
	for _, f := range fs {
		go func() {
			defer func() { done <- struct{}{} }()
			f()
		}()
	}
	var over <-chan time.Time
	if limit > 0 {
		t := time.NewTimer(limit)
		defer t.Stop()
		over = t.C
	}
	for range fs {
		select {
		case <-done:
		case <-over:
			return
		}
	}
}

// retakePIDFile puts this process's pid back, if the new one has put its own there.
func (u *Upgrader) retakePIDFile() {
	if u.pid == nil {
		return
	}
	if err := u.pid.retake(); err != nil {
		u.log.Error("grace: the PID file can't be taken back", "err", err)
	}
}

// endServers closes the sockets and ends the servers, which may call the
// program's own code.
func (u *Upgrader) endServers() {
	ends := []func(){u.socks.Close}
	for _, s := range u.host.Last() {
		ends = append(ends, s.End)
	}
	within(endPatience, ends...)
}

// end is the last part of finish: it waits for what is outside, and tells the
// machine then. mayRemove: the PID file is this process's to remove; last: no other
// process of the service has its lock; holds: it has exclusive state.
func (u *Upgrader) end(mayRemove, last, holds bool, peers []*control.Channel) {
	within(2*restorePatience, u.restores.Wait) // what has become of an upgrade is told before the end
	u.endServers()
	u.exclusive.awaitReady()
	if holds {
		u.exclusive.releaseLast(u) // before the PID file's lock, which another start waits for
	}
	u.log.Info("grace: stopped", "pid", os.Getpid(), "generation", u.generation)
	if u.pid != nil {
		u.opt.flushLog() // what waits for the lock, as grace-follow, may take the log along when it ends
		within(endPatience, func() { u.pid.giveUp(mayRemove, last) })
	}
	// The program exits soon, and what is not written then is lost.
	for _, ch := range peers {
		ch.Flush(time.Second)
	}
	u.emit(Event{Kind: EventStopped})
	u.post(u.tellEnd)
}

// tellEnd sends the last messages to systemd and the log.
func (u *Upgrader) tellEnd() {
	next := u.child
	tell := u.handOverMain()
	went := u.m.child.went() && u.m.lingers != lingered // else it was told when this process began to linger
	go func() {
		if tell != nil {
			tell()
		} else {
			u.notify.Flush()
		}
		u.opt.flushLog()
		u.flushEvents()
		if next != nil && went {
			next.ch.Send(control.NewMessage(msgMain, nil))
		}
		u.happen(evFinished{})
	}()
}
