package grace

import (
	"context"
	"time"

	"github.com/julofinance/grace/v3/internal/control"
	"github.com/julofinance/grace/v3/internal/serve"
	"github.com/julofinance/grace/v3/internal/sockets"
)

// A performer carries out the effects of the machine. All of it runs in the
// goroutine that owns the state, and none of it waits for anything outside.
type performer struct{ u *Upgrader }

// The sockets.

func (p performer) openGates() error {
	if err := p.u.socks.OpenGates(); err != nil {
		return err
	}
	p.u.leashes.watch(p.u.hearLingerer)
	if p.u.parent != nil {
		p.u.sayAccepting() // at once: the old process goes on accepting until it hears this
	}
	return nil
}

func (p performer) closeGates() {
	c := p.u.child
	p.u.socks.Yield(c.handed, c.claims.Load().Sockets)
}

func (p performer) leaveToChild() {
	all := make([]int, len(p.u.child.handed))
	for i := range all {
		all[i] = i
	}
	p.u.socks.Yield(p.u.child.handed, all)
}

func (p performer) leaveEnd() {
	p.u.socks.LeaveEnd(p.u.child.handed, p.u.child.claims.Load().Sockets)
}

func (p performer) reopenGates() {
	p.u.host.Bar(false)
	p.u.host.SetDraining(false) // before what waits is accepted: a stream that begins now is not to end
	p.u.socks.ReopenGates()
	go p.u.host.Reopened()
}

func (p performer) mend()   { p.u.socks.MendAll() }
func (p performer) letGo()  { go p.u.socks.LetGo() }
func (p performer) disown() { p.u.socks.Own(false) }

// The child.

func (p performer) launch(id int) {
	go func() {
		c, err := p.u.launch(p.u.ctx, id)
		p.u.post(func() {
			launched := evLaunched{err: err}
			if err == nil {
				c.ctx, c.over = context.WithCancel(p.u.ctx)
				c.give = p.u.stateGiver(c.proc.Pid())
				p.u.child = c
				c.watch(func(e event) { p.u.happen(e) })
				launched.pid, launched.age = c.proc.Pid(), time.Since(c.launched)
			}
			p.u.m.on(launched)
		})
	}()
}

func (p performer) sendGo() { p.u.child.ch.Send(control.NewMessage(msgGo, nil)) }
func (p performer) sendUpgrade() {
	p.u.tellPeer(p.u.child.ch, p.u.child.proc.Pid(), control.NewMessage(msgUpgrade, nil), "upgrade")
}

func (p performer) sendStop(now bool) {
	p.u.tellPeer(p.u.child.ch, p.u.child.proc.Pid(), control.NewMessage(msgStop, &stopMessage{Now: now}), "stop")
}

func (p performer) ping() {
	id := p.u.child.id
	p.u.child.ping(p.u.m.limits.pong/2, func(err error) { go p.u.happen(evUnasked{id, err}) })
}

func (p performer) examine(probation time.Duration) {
	c := p.u.child
	go func() { p.u.happen(evProbationOver{c.id, p.u.examine(c, probation)}) }()
}

func (p performer) stopMoves()  { p.u.child.mover.Stop() }
func (p performer) kill() error { return p.u.child.proc.Kill() }

func (p performer) forget() {
	p.u.child.ch.Close()
	p.u.child.mover.Stop()
	p.u.child.over()
	p.u.child = nil
}

// The parent.

// tellParentOfChild tells a parent that has finished, and hangs on its way out,
// whether a third process serves: then the parent knows that the end of this
// process is not the end of the service.
func (p performer) tellParentOfChild(serves bool) {
	if p.u.parent != nil {
		gone := "gone"
		if serves {
			gone = ""
		}
		p.u.parent.ch.Send(control.Message{Type: msgHanded, Payload: []byte(gone)})
	}
}

func (p performer) sendParentStop(now bool) {
	parent := p.u.parent
	p.u.tellPeer(parent.ch, parent.m.Pid, control.NewMessage(msgStop, &stopMessage{Now: now, Early: parent.turn.forgo()}), "stop")
}

func (p performer) sendParentLeave() {
	p.u.parent.ch.Send(control.NewMessage(msgStop, &stopMessage{Leave: true}))
}

func (p performer) sendPong()   { p.u.parent.ch.Send(control.NewMessage(msgPong, nil)) }
func (p performer) becomeMain() { p.u.onMain(true) }

// tellPatience is shorter than the time for which the end of this process waits
// for queued messages.
const tellPatience = 900 * time.Millisecond

// tellPeer sends m to the other process of a hand-over. If it could not be sent
// in time while that process lives, that is logged, so that the operator knows
// what the other process was not told.
func (u *Upgrader) tellPeer(ch *control.Channel, pid int, m control.Message, what string) {
	ch.SendWithin(tellPatience, m, func(err error) {
		if err != nil && isOurs(err) {
			u.log.Error("grace: the other process of the hand-over can't be told", "what", what, "peer", pid, "err", err, "hint", "send it the signal yourself")
		}
	})
}

// The drain, and the end.

func (p performer) goLame() {
	p.u.log.Info("grace: accepting still, see LameDuck; then this process drains", "for", p.u.opt.lameDuck)
	p.u.emit(Event{Kind: EventLameDuck})
	p.u.host.LameDuck()
}

func (p performer) beginDrain(move bool) {
	begun := Event{Kind: EventDraining}
	if c := &p.u.m.child; c.accepted() && c.stage != leaving {
		begun.Peer = p.u.m.child.pid
	}
	p.u.emit(begun)
	p.u.host.SetDraining(true)
	p.u.socks.EndAccept()
	var m *sockets.Mover
	if move && p.u.opt.move {
		m = p.u.child.mover
	}
	d := serve.NewDrain(m)
	if p.u.m.hold == lent {
		d.Report = p.u.drain.Report // of the pause
	}
	if move {
		d.LetRest(p.u.opt.drainTimeout)
	}
	p.u.drain = d
	limit := p.u.opt.drainTimeout
	if p.u.m.mayLinger() { // it is to come that far
		limit = max(limit, lingerAfter+pongPatience)
	}
	go func() {
		d.Run(p.u.host.All(), limit)
		p.u.happen(evDrained{})
	}()
}

// offer does nothing in a drain without a mover, which moves nothing: with
// MoveConns(false), or if the child is to stop as well.
func (p performer) offer() {
	if d := p.u.drain; d != nil && d.Mover != nil {
		go d.Offer(p.u.host.All())
	}
}

func (p performer) hurryDrain() { p.u.drain.Hurry() }

func (p performer) cancelDrain() { p.u.drain.Cancel() }

func (p performer) resume() {
	d := p.u.drain
	go func() {
		d.Resume(p.u.host.All())
		p.u.happen(evResumed{})
	}()
}

func (p performer) stopping(service bool) {
	if service {
		p.u.notify.Stopping(p.u.drains())
	}
	p.u.cancel()
}

func (p performer) finish(gaveUp, last bool) {
	p.u.cancel()
	var peers []*control.Channel
	if p.u.child != nil {
		peers = append(peers, p.u.child.ch)
	}
	if p.u.parent != nil {
		peers = append(peers, p.u.parent.ch)
	}
	go p.u.end(!gaveUp, last && !gaveUp, p.u.m.hold == held, peers)
}

func (p performer) done() {
	close(p.u.done)
	if p.u.child != nil && p.u.m.lingers != lingered {
		p.u.warnIfNeverGone(p.u.child.proc.Pid())
	}
}

func (p performer) endSignals() { p.u.endSignals() }

// The rest.

func (p performer) restore(callers []reply, n notice, err error) {
	e := p.eventOf(n, err)
	if e.Kind != 0 { // now: the event of a drain may follow at once
		p.u.emit(e)
	}
	p.u.restore(func() {
		p.sayToOperator(n, e, err)
		tell(callers, err)
	})
}

func (p performer) after(d time.Duration, e event) {
	time.AfterFunc(d, func() { p.u.happen(e) })
}

func (p performer) hasServiceManager() bool { return p.u.notify != nil }
func (p performer) isService() bool         { return p.u.isService() }
