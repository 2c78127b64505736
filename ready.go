package grace

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/julofinance/grace/v3/internal/control"
	"github.com/julofinance/grace/v3/internal/fd"
	"github.com/julofinance/grace/v3/internal/manifest"
	"github.com/julofinance/grace/v3/internal/sockets"
)

// Ready declares that this process can serve: the listeners begin to accept, the
// PID file names it, sockets that the old process had and this program has not
// asked for are left to it, and the old process stops accepting. It is called
// once everything that is needed to serve is there, also by a first process,
// whose listeners wait for it too. [Upgrader.Actor] and [Serve] call it.
//
// An error means that this process must not serve: ReadyCheck's, ErrExclusive, ErrState,
// the PID file's, or ErrStopped. The program should exit; an old process goes on. A
// second call does nothing and returns the result of the first.
func (u *Upgrader) Ready() error {
	u.readyOnce.Do(func() {
		if u.readyErr = u.sayReady(); u.readyErr != nil {
			u.emit(Event{Kind: EventFailed, Err: u.readyErr})
			u.opt.flushLog() // the program exits now
			u.flushEvents()
		}
	})
	return u.readyErr
}

func (u *Upgrader) sayReady() (err error) {
	defer func() { u.exclusive.leaveReady(u, err) }()
	if check := u.opt.readyCheck; check != nil {
		ctx, cancel := context.WithTimeout(u.ctx, u.opt.readyTimeout)
		err := u.callHook(ctx, "ReadyCheck", check)
		cancel()
		if err != nil {
			return u.failReady(fmt.Errorf("grace: ReadyCheck: %w", err))
		}
	}
	if u.parent != nil {
		if err := u.handshake(); err != nil {
			return u.failReady(err)
		}
	} else if err := u.exclusive.acquireFirst(u); err != nil {
		return err
	}
	if u.underMaster() && u.pid != nil {
		if err := u.pid.takeOver(); err != nil {
			return err
		}
	}
	err = u.accept()
	if u.pid != nil {
		go u.pid.tidy()
	}
	return err
}

// accept is the last part of Ready: all is agreed.
func (u *Upgrader) accept() error {
	reply, left := make(chan error, 1), make(chan bool, 1)
	ready := func() {
		u.m.on(evReady{reply})
		left <- u.m.gaveUp
	}
	if !u.post(ready) {
		return fmt.Errorf("grace: Ready: %w", ErrStopped)
	}
	err := <-reply
	if errors.Is(err, ErrStopped) {
		u.exclusive.releaseUnused(u) // before the PID file's lock, which another start waits for
	}
	if u.pid != nil && errors.Is(err, ErrStopped) {
		u.pid.release(!<-left) // finish is about to, but the program exits now
	}
	if u.parent != nil {
		// Should the program exit next, the old process is to know that this one
		// had begun.
		u.parent.ch.Flush(time.Second)
	}
	return err
}

// handshake agrees with the old process that it is this process's turn now:
// the state in memory, claims, the line, go, the exclusive state, and the PID file. If the
// old process is dead it is our turn in any case.
func (u *Upgrader) handshake() error {
	p := u.parent
	if u.exclusive == nil {
		if err := u.takeState(u.opt.readyTimeout / 2); err != nil {
			return err
		}
	}
	p.claims.Store(true) // before it is looked up: nothing falls between
	c := u.socks.Claims()
	p.told = c.Sockets
	takes := u.pid != nil && !u.pid.held()
	if takes {
		if err := u.pid.prepare(); err != nil {
			return err
		}
	}
	c.Pongs, c.Probes, c.Keeps, c.Exclusive = true, true, true, u.exclusive != nil
	p.ch.Send(control.NewMessage(msgClaims, &c))
	_, err := p.ready.WriteString(readyLine)
	p.ready.Close()
	u.catch() // while the answer is on its way
	if err != nil && !errors.Is(err, fd.ErrBrokenPipe) {
		err = fmt.Errorf("grace: readiness pipe: %w", err)
	} else {
		err = p.awaitGo(u.ctx)
	}
	if err == nil {
		err = u.exclusive.acquireFirst(u)
	}
	if err == nil && u.exclusive != nil {
		err = u.takeState(u.exclusive.left())
	}
	if !takes {
		return err
	}
	if err != nil {
		u.pid.discard()
		return err
	}
	return u.pid.take()
}

// sayAccepting tells the old process that this one accepts, and on which sockets
// if the program has claimed or closed some since the claims. What it has not
// claimed by now is the old process's.
func (u *Upgrader) sayAccepting() {
	c, dropped := u.socks.Seal()
	m := control.NewMessage(msgAccepting, nil)
	if !slices.Equal(c.Sockets, u.parent.told) {
		m = control.NewMessage(msgAccepting, &c)
	}
	u.parent.ch.Send(m)
	if len(dropped) > 0 {
		go sockets.CloseInherited(dropped) // a file's end may wait for its disk
	}
	if dropped = sockets.Unused(dropped); len(dropped) > 0 {
		u.log.Warn("grace: this version does not use sockets that the old process has; it serves what is queued in them and closes them", "sockets", sockets.Names(dropped))
	}
}

// failReady tells the old process why, so that its log has the reason too.
func (u *Upgrader) failReady(err error) error {
	if u.parent != nil {
		why := err.Error()
		u.parent.ch.Send(control.Message{Type: msgFailed, Payload: []byte(why[:min(len(why), control.MaxPayload)])})
		u.parent.ch.Flush(time.Second)
	}
	return err
}

// HasParent reports whether an old process started this one and handed its
// sockets over; it stays true when that process is gone.
func (u *Upgrader) HasParent() bool { return u.parent != nil }

// WaitForParent returns when the old process is gone, or at once if there was
// none. One that lingers is not gone. The error is the context's.
func (u *Upgrader) WaitForParent(ctx context.Context) error {
	if u.parent == nil {
		return nil
	}
	select {
	case <-u.parent.gone:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// takes tells the old process that connections of this protocol may be moved to l, if
// the claims were sent already.
func (u *Upgrader) takes(l *sockets.Listener, proto string) {
	if u.parent == nil || l.Sock.Index < 0 || !u.parent.claims.Load() {
		return // what is known before the claims goes with them: one message for all
	}
	var c manifest.Claims
	c.Add(l.Sock.Index, proto)
	u.parent.ch.Send(control.NewMessage(msgTakes, &c))
}
