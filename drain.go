package grace

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"
)

// A stopRequest asks this process to end.
type stopRequest struct {
	signal   os.Signal // nil if it was not a signal
	at       time.Time // when it has arrived; zero is now
	now      bool      // cut off what is left
	passedOn bool      // the other process of a hand-over was told first
	leave    bool      // only this process is to end, not the service
	reason   string    // if it was neither a signal nor the program
}

// Stop ends the service, as SIGTERM does: this process stops accepting, drains
// and closes Done. It returns at once. A second call cuts off what is left. If
// this process has handed over less than 10 seconds ago, the new one is told to
// stop as well, and later only if a supervisor takes this process for the
// service; if a new process is starting, it is killed. When all servers have ended
// because this process has handed over, and after Done, it does nothing.
func (u *Upgrader) Stop() { u.post(func() { u.onStop(stopRequest{}) }) }

// Close ends this process's part, for programs that give up on an error: like
// Stop, but an old process that still stands by takes over again, and a new one
// goes on, also one that is starting. It returns at once, and does nothing after Stop, Close or Done.
func (u *Upgrader) Close() { u.post(func() { u.onStop(stopRequest{leave: true}) }) }

func (u *Upgrader) onStop(r stopRequest) {
	if u.repeatedStop(&r) {
		return
	}
	if u.concernsOldOnly(r) {
		u.endOldOnly(r)
		return
	}
	if u.state == stopped {
		if r.signal != nil { // not a program's Stop on its way out: new serves
			u.passStop(r)
		}
		return
	}
	if r.leave && !u.stopAsked && u.state == upgrading && u.next != nil && u.next.went {
		// New accepts at any moment, and says then which sockets are its own: that
		// decides whose paths and queues they are. Or it dies.
		u.leaving = true
		return
	}
	if u.stopAsked {
		if r.leave || r.passedOn && !r.now {
			return // both processes may get the same signal: it counts once
		}
		if u.underMaster() && (r.signal != nil || r.reason != "") {
			return // masters repeat it: to all that are not the newest, at each upgrade
		}
		r.now = true
	}
	if r.signal != nil {
		u.log.Info("grace: stopping", "signal", r.signal, "now", r.now)
	}
	if r.reason != "" {
		u.log.Info("grace: stopping", "reason", r.reason)
	}
	if r.signal != nil || r.reason != "" { // how an upgrade by a master succeeds
		u.answerAsked(slices.Clone(u.asked), nil)
	}
	handedOver := u.state == yielded || u.state == draining || (u.next != nil && u.next.went)
	u.stopAsked = true
	if !r.leave {
		u.ends = true
		u.notify.stop(fmt.Sprintf("generation %d, pid %d, drains; the service ends", u.generation, os.Getpid()))
	}
	u.cancel()
	if u.ends && u.next != nil && !u.next.went {
		u.kill(u.next, ErrStopped)
	}
	switch {
	case u.held: // only new is waited for
	case u.drain != nil && u.drain.cancelled(): // rolled back right now: onDrained begins another
		u.refuseAll()
		u.cutSoon = r.now
	case u.drain != nil: // it is under way already
	case u.state == draining: // it is over, and onLaunched follows
	case handedOver:
		u.answer(nil)
		u.probation.Stop()
		if u.state == upgrading { // it accepts at any moment
			u.socks.leaveEnd(u.next.handed, u.next.claims.Sockets)
		}
		m := u.next.mover
		if !r.leave { // the new process is to stop as well
			m = nil
		}
		u.beginDrain(m)
	default:
		if r.leave && u.next != nil {
			u.leaveToNew()
		}
		u.refuseAll()
		u.beginLastDrain(r)
	}
	if handedOver {
		go u.socks.letGo()
	}
	u.passStop(r)
	if r.now && u.drain != nil {
		u.drain.hurry()
	}
	if u.next != nil {
		u.unask(u.next)
	}
}

// repeatedStop reports whether r is no more than a stop that was asked for a
// moment before: see repeats. Only this keeps a supervisor that signals both
// processes of a hand-over from cutting off what they have begun.
func (u *Upgrader) repeatedStop(r *stopRequest) bool {
	if r.at.IsZero() {
		r.at = time.Now()
	}
	switch {
	case r.leave:
		return false
	case r.passedOn:
		u.stops.again(fromPeer, r.at) // of several, onStop takes the first
		return false
	case r.signal == nil: // a program's second Stop is meant
		return u.stops.passedOn(r.at)
	case !u.stops.again(signalName(r.signal), r.at):
		return false
	}
	u.log.Info("grace: the same signal again; it counts as one", "signal", r.signal, "within", sameSignal)
	return true
}

// passOnFor is how long after the hand-over a stop that reaches old is one of
// the service: whoever sent it had read the PID file a moment before. Later it
// is meant for a process that takes too long to end.
const passOnFor = 10 * time.Second

// concernsOldOnly reports whether new serves on, whatever becomes of this process.
func (u *Upgrader) concernsOldOnly(r stopRequest) bool {
	s := u.next
	return s != nil && s.accepted && !s.left && !s.orderly && u.state >= yielded && !u.stopAsked &&
		!r.leave && !r.passedOn && r.at.Sub(s.since) > passOnFor && !u.isService()
}

// endOldOnly: this process alone is to end. It drains already, or does from now
// on; the first signal cuts off nothing here either, since new may have got the
// same one, and pass it on.
func (u *Upgrader) endOldOnly(r stopRequest) {
	s := u.next
	r.now, s.alone = s.alone, true
	u.log.Info("grace: stop asked of a process that has handed over long ago; only this process ends", "new", s.proc.pid(), "signal", r.signal, "now", r.now)
	switch {
	case u.state == stopped:
		if r.signal != nil { // the program hangs on its way out: one more signal ends it
			u.endSignals()
		}
	case u.state == yielded:
		u.probation.Stop()
		u.onProbationOver()
	case r.now && u.drain != nil:
		u.drain.hurry()
	}
}

// leaveToNew: the program of this process gives up, on an error of a server's say,
// while a new one is starting. That one is to serve, as if this process had died: it
// has a copy of every socket, and what comes from now on waits for it there.
func (u *Upgrader) leaveToNew() {
	s := u.next
	all := make([]int, len(s.handed))
	for i := range all {
		all[i] = i
	}
	u.socks.yield(s.handed, all)
	u.leftTo, u.left = s, true
	u.log.Warn("grace: this process gives up while a new one is starting; it leaves the sockets to that", "new", s.proc.pid())
}

// mayServe reports whether a new process that is not ready yet is waited for.
func (u *Upgrader) mayServe(s *successor) bool {
	return s == u.next && (u.state == upgrading || u.state == draining && s == u.leftTo)
}

// passStop tells the other process of a hand-over that the service is to end.
func (u *Upgrader) passStop(r stopRequest) {
	if r.leave || r.passedOn {
		return
	}
	if u.next != nil && u.next.went && (r.now || !u.next.orderly) { // an orderly one knows, but not that it should cut off
		u.log.Info("grace: stop asked of a process that has handed over; passed on", "new", u.next.proc.pid())
		u.tellPeer(u.next.ch, u.next.proc.pid(), newMessage(msgStop, &stopMessage{Now: r.now}), "stop")
	}
	if u.parent != nil && !u.parentGone {
		u.tellPeer(u.parent.ch, u.parent.m.Pid, newMessage(msgStop, &stopMessage{Now: r.now, Early: !u.parent.mayAccept()}), "stop")
	}
}

// refuseAll answers everybody who waits for an upgrade that will not be.
func (u *Upgrader) refuseAll() {
	u.current, u.waiting, u.asked = slices.Concat(u.current, u.waiting, u.asked), nil, nil
	u.answer(fmt.Errorf("grace: Upgrade: %w", ErrStopped))
	u.pending = false
}

// beginLastDrain ends a process that has no successor. If it gives up while its
// predecessor stands by, that one takes over, and has the queues.
func (u *Upgrader) beginLastDrain(r stopRequest) {
	if r.leave && u.parent != nil && !u.parentGone {
		u.left = true
		u.socks.own(false)
		u.parent.ch.send(newMessage(msgStop, &stopMessage{Leave: true}))
	}
	u.beginDrain(nil)
}

// beginDrain finishes what this process has begun. m moves connections to the
// new process; it is nil if there is none.
func (u *Upgrader) beginDrain(m *mover) {
	u.state = draining
	u.socks.endAccept()
	if !u.opt.move {
		m = nil
	}
	d := newDrain(m)
	u.drain = d
	go func() {
		d.run(u.allServers(), u.opt.drainTimeout)
		u.post(func() { u.onDrained(d) })
	}()
}

// onDrained: nothing is left, or it was cut off, or new has died meanwhile.
func (u *Upgrader) onDrained(d *drain) {
	if d.back {
		return
	}
	if d.cancelled() { // rolled back
		d.back = true
		go func() {
			d.resume(u.allServers())
			u.post(u.onResumed)
		}()
		return
	}
	if s := u.next; s != nil && !d.over && !u.stopAsked && s.accepted {
		// To exit now would leave nobody, if new is stopped or hangs.
		d.over = true
		u.ask(s, func() {
			if u.drain == d {
				u.onDrained(d)
			}
		})
		return
	}
	u.drain = nil
	d.log(u.log)
	switch {
	case u.launching: // onLaunched kills what it has started, first
	case u.ends && u.notify != nil && u.next != nil && u.next.went:
		// systemd ends what is left of a service whose main process exits: new
		// is to drain in peace.
		u.held = true
	default:
		u.finish()
	}
}

// onResumed: all servers serve again as before a drain that was called off.
func (u *Upgrader) onResumed() {
	u.drain = nil
	if !u.stopAsked {
		u.settle() // an upgrade may be wanted already
		return
	}
	u.beginDrain(nil)
	if u.cutSoon {
		u.drain.hurry()
	}
}

// finish ends this process's part for good.
func (u *Upgrader) finish() {
	u.state = stopped
	u.refuseAll()
	u.cancel()
	var peers []*channel
	if u.next != nil {
		peers = append(peers, u.next.ch)
	}
	if u.parent != nil {
		peers = append(peers, u.parent.ch)
	}
	left, last := u.left, u.next == nil && (u.parent == nil || u.parentGone)
	go func() {
		u.endServers()
		if u.pid != nil {
			within(endPatience, func() { u.pid.giveUp(!left, last && !left) })
		}
		// The program exits soon, and what is not written then is lost.
		for _, ch := range peers {
			ch.flush(time.Second)
		}
		u.log.Info("grace: stopped", "pid", os.Getpid(), "generation", u.generation)
		u.post(u.onFinished)
	}()
}

// endServers closes the sockets and ends the servers, which may call the
// program's own code.
func (u *Upgrader) endServers() {
	ends := []func(){u.socks.close}
	for _, s := range u.lastServers() {
		ends = append(ends, s.shutdown)
	}
	within(endPatience, ends...)
}

// onFinished: only systemd and the log are left to be told.
func (u *Upgrader) onFinished() {
	next := u.next
	tell := u.handOverMain()
	go func() {
		if tell != nil {
			tell()
		} else {
			u.notify.flush()
		}
		u.opt.logs.flush()
		u.post(func() {
			if next != nil && next.went {
				next.ch.send(newMessage(msgMain, nil))
			}
			u.finished = true
			close(u.done)
			if next != nil {
				u.warnIfNeverGone(next.proc.pid())
			}
		})
	}()
}

// warnIfNeverGone: a program that does not exit after Done keeps the new process
// from being upgraded, since at most two generations run.
func (u *Upgrader) warnIfNeverGone(next int) {
	time.AfterFunc(max(time.Second, u.opt.drainTimeout), func() {
		u.log.Warn("grace: this process has finished, and does not exit; the new process can't be upgraded before", "pid", os.Getpid(), "new", next,
			"do", "see what the program does after Done is closed, or Serve or Run has returned; end this process, by SIGKILL if need be")
	})
}

func (u *Upgrader) allServers() []drainer {
	u.serversMu.Lock()
	defer u.serversMu.Unlock()
	return append([]drainer(nil), u.servers...)
}

// lastServers is allServers, and ends each one that comes later.
func (u *Upgrader) lastServers() []drainer {
	u.serversMu.Lock()
	u.serversEnded = true
	u.serversMu.Unlock()
	return u.allServers()
}

// addServer adds a server. One that comes when the others were ended is ended as
// well: a stop may come while the program still sets itself up. serversMu is held.
func (u *Upgrader) addServer(s drainer) {
	u.servers = append(u.servers, s)
	if u.serversEnded {
		go s.shutdown()
	}
}

// A drainer is a server that finishes what it has begun.
type drainer interface {
	// drain returns when nothing is left, when d.cut is closed and it has cut
	// off what was, or when d.ctx has ended: then it serves on as before.
	drain(d *drain) drainReport
	// resume lets it serve as before, if it does not already: a drain was called
	// off, maybe when this server had nothing left and only another one had.
	resume()
	// offer is called while it drains, if new takes more than it took before.
	offer(m *mover)
	// shutdown ends the server for good; what is left is cut off.
	shutdown()
}

// A drainReport counts what became of a server's connections.
type drainReport struct {
	finished int // ended by themselves, or when they were idle
	waited   int // were hijacked, and ended by themselves
	cut      int // still there when the time was up
}

// A drain is one run of all drainers.
type drain struct {
	mover  *mover // nil if there is no successor
	ctx    context.Context
	cancel context.CancelFunc // rolls back
	cut    chan struct{}      // closed when the time is up
	once   sync.Once
	begun  time.Time
	report drainReport
	over   bool       // nothing is left. Owned by loop
	mu     sync.Mutex // held by offer and resume
	back   bool       // it was called off, and the servers are resumed. Owned by loop
}

func newDrain(m *mover) *drain {
	d := &drain{mover: m, cut: make(chan struct{}), begun: time.Now()}
	d.ctx, d.cancel = context.WithCancel(context.Background())
	return d
}

func (d *drain) run(servers []drainer, limit time.Duration) {
	defer time.AfterFunc(limit, d.hurry).Stop()
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, s := range servers {
		wg.Go(func() {
			r := s.drain(d)
			mu.Lock()
			defer mu.Unlock()
			d.report.finished += r.finished
			d.report.waited += r.waited
			d.report.cut += r.cut
		})
	}
	wg.Wait()
}

// offer tells the servers that new takes more than before. It is not for the
// goroutine that owns the state, like resume, and does nothing after that.
func (d *drain) offer(servers []drainer) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.cancelled() {
		for _, s := range servers {
			s.offer(d.mover)
		}
	}
}

func (d *drain) resume(servers []drainer) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range servers {
		s.resume()
	}
}

// hurry cuts off what is left.
func (d *drain) hurry() { d.once.Do(func() { close(d.cut) }) }

func (d *drain) cancelled() bool { return d.ctx.Err() != nil }

func (d *drain) log(log *slog.Logger) {
	moved := 0
	if d.mover != nil {
		moved = d.mover.count()
	}
	args := []any{"took", time.Since(d.begun), "moved", moved, "finished", max(0, d.report.finished-moved), "waited", d.report.waited, "cut", d.report.cut}
	if d.report.cut > 0 {
		log.Warn("grace: drained; connections were cut off, see DrainTimeout", args...)
		return
	}
	log.Info("grace: drained", args...)
}
