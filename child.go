package grace

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync/atomic"
	"time"
)

// A parent is the old process, as the new one sees it.
type parent struct {
	ch      *channel
	ready   *os.File // readiness pipe
	m       manifest
	goAhead chan struct{} // closed when old has said go
	deaf    chan struct{} // closed when nothing more is heard of old, dead or alive
	gone    chan struct{} // closed when old is proven to be dead
	life    lifeline
	claims  atomic.Bool // they are being made: what comes later is told by itself
	told    []int       // the sockets of the claims that old was told
	pidLock *os.File    // the lock of old's PID file; nil: it has none
}

// joinParent reads the manifest. Old wrote it before it started us.
func joinParent(h *handover, limit time.Duration) (*parent, error) {
	if h.version != protocolVersion {
		return nil, fmt.Errorf("grace: %w: the old process speaks version %d of it, this one %d; stop the old one and start this one once", ErrProtocol, h.version, protocolVersion)
	}
	conn, ready, err := h.open()
	if err != nil {
		return nil, fmt.Errorf("grace: control channel: %w", err)
	}
	p := &parent{ch: newChannel(conn), ready: ready, goAhead: make(chan struct{}), deaf: make(chan struct{}), gone: make(chan struct{})}
	p.ch.most += maxPerSocket * min(h.count, 1<<14)
	conn.SetReadDeadline(time.Now().Add(limit))
	m, err := p.ch.next()
	conn.SetReadDeadline(time.Time{})
	if err == nil && m.typ != msgManifest {
		err = fmt.Errorf("%w: it begins with a message %q", ErrProtocol, m.typ)
	}
	if err == nil {
		err = m.decode(&p.m)
	}
	if err == nil && len(p.m.Sockets) != h.count {
		err = fmt.Errorf("%w: the manifest names %d sockets, and %d were passed", ErrProtocol, len(p.m.Sockets), h.count)
	}
	if err != nil {
		err = fmt.Errorf("grace: the manifest of the old process can't be read: %w", err)
	} else if p.ch.saysLeft() {
		err = fmt.Errorf("grace: %w: it was started too late, and the old process, pid %d, does not wait for it any more", ErrStopped, p.m.Pid)
	}
	if err != nil {
		p.ch.close()
		ready.Close()
		return nil, err
	}
	return p, nil
}

// run listens to old.
func (u *Upgrader) runParent() {
	p := u.parent
	r := &receiver{ch: p.ch, find: u.socks.taker, held: map[uint32]received{}}
	p.ch.run(func(m message) {
		switch m.typ {
		case msgConns:
			if err := r.onConns(m); err != nil {
				u.log.Error("grace: connections that were moved here can't be taken; the old process keeps them", "err", err)
			}
			return
		case msgVerdict:
			if err := r.onVerdict(m); err != nil {
				u.log.Error("grace: connections that were moved here can't be taken", "err", err)
			}
		case msgGo:
			select {
			case <-p.goAhead:
			default:
				close(p.goAhead)
			}
		case msgStop:
			var s stopMessage
			if m.decode(&s) == nil {
				at := time.Now()
				u.post(func() { u.onStop(stopRequest{at: at, now: s.Now, passedOn: true}) })
			}
		case msgPing: // in a goroutine: it may hang, and what else old sends is to be read
			go u.post(func() { p.ch.send(newMessage(msgPong, nil)) })
		case msgUpgrade:
			at := time.Now()
			u.post(func() { u.onUpgradeSignal(fromPeer, at) })
		case msgMain:
			u.post(func() { u.onMain(true) })
		}
		closeAll(m.fds)
	}, func(err error) {
		close(p.deaf)
		if !u.outlive(err) {
			return // this process ends first
		}
		r.onEnd()
		p.ch.close()
		p.life.close()
		close(p.gone)
		u.post(u.onParentGone)
	})
	go p.watchLife(u.over)
}

// watchLife ends the channel when old is dead: whoever else has old's end of it keeps
// it open, as a child of old's that hangs in execve does, which has every descriptor
// until then. What old has sent is read before.
func (p *parent) watchLife(over <-chan struct{}) {
	if p.life.await(over) {
		p.ch.conn.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
	}
}

func (p *parent) isGone() bool {
	select {
	case <-p.gone:
		return true
	default:
		return false
	}
}

// outlive waits until old is proven to be dead. The end of the channel, for the
// reason err, does not prove that.
func (u *Upgrader) outlive(err error) bool {
	p := u.parent
	warn := time.AfterFunc(deafPatience, func() {
		u.log.Warn("grace: the old process can't be heard any more; what it has is left to it until the kernel says that it is dead", "old", p.m.Pid, "err", err)
	})
	defer warn.Stop()
	return p.life.await(u.over)
}

// deafPatience is how long old may take to be dead when its end of the channel is
// closed.
const deafPatience = 2 * time.Second

// Ready says that this process can serve: the listeners begin to accept, the
// PID file names it, sockets that the old process had and nobody here asked
// for are left to it, and the old process stops accepting. It is called once
// everything that is needed to serve is there, also by a first process, whose
// listeners wait for it too. [Upgrader.Actor] and [Serve] call it.
//
// An error means that this process must not serve: ReadyCheck's, the PID
// file's, or ErrStopped. The program should exit; an old process goes on. A
// second call does nothing and returns the result of the first.
func (u *Upgrader) Ready() error {
	u.readyOnce.Do(func() {
		if u.readyErr = u.sayReady(); u.readyErr != nil {
			u.opt.logs.flush() // the program exits now
		}
	})
	return u.readyErr
}

func (u *Upgrader) sayReady() error {
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
	}
	if u.underMaster() && u.pid != nil {
		if err := u.pid.takeOver(); err != nil {
			return err
		}
	}
	return u.accept()
}

// accept is the last part of Ready: all is agreed.
func (u *Upgrader) accept() error {
	reply, left := make(chan error, 1), false
	if !u.post(func() { err := u.onReady(); left = u.left; reply <- err }) {
		return fmt.Errorf("grace: Ready: %w", ErrStopped)
	}
	err := <-reply
	if u.pid != nil && errors.Is(err, ErrStopped) {
		u.pid.release(!left) // finish is about to, but the program exits now
	}
	if u.parent != nil {
		// Should the program exit next, old is to know that it had begun.
		u.parent.ch.flush(time.Second)
	}
	return err
}

// handshake agrees with old that it is now this process's turn: claims, the
// line, go, and the PID file. If old is dead it is our turn in any case.
func (u *Upgrader) handshake() error {
	p := u.parent
	p.claims.Store(true) // before it is looked up: nothing falls between
	c := u.socks.claims()
	p.told = c.Sockets
	takes := u.pid != nil && !u.pid.held()
	if takes {
		if err := u.pid.prepare(); err != nil {
			return err
		}
	}
	c.Pongs = true
	p.ch.send(newMessage(msgClaims, &c))
	_, err := p.ready.WriteString(readyLine)
	p.ready.Close()
	if err != nil && !errors.Is(err, errBrokenPipe) {
		err = fmt.Errorf("grace: readiness pipe: %w", err)
	} else {
		err = u.awaitGo()
	}
	<-u.signals
	if !takes {
		return err
	}
	if err != nil {
		u.pid.discard()
		return err
	}
	return u.pid.take()
}

// sayAccepting tells old that this process accepts, on which sockets if the
// program has claimed or closed some since the claims. What it has not claimed
// by now is old's.
func (u *Upgrader) sayAccepting() {
	c, dropped := u.socks.seal()
	m := newMessage(msgAccepting, nil)
	if !slices.Equal(c.Sockets, u.parent.told) {
		m = newMessage(msgAccepting, &c)
	}
	u.parent.ch.send(m)
	if len(dropped) > 0 {
		go closeInherited(dropped) // a file's end may wait for its disk
	}
	if dropped = unused(dropped); len(dropped) > 0 {
		u.log.Warn("grace: this version does not use sockets that the old process has; it serves what is queued in them and closes them", "sockets", names(dropped))
	}
}

// awaitGo waits until old has said go, or is dead. If it lives and can't be heard
// it may think that this process never accepts: then it must not.
func (u *Upgrader) awaitGo() (err error) {
	p := u.parent
	select {
	case <-p.goAhead:
	case <-p.gone:
	case <-u.ctx.Done():
	case <-p.deaf:
		err = u.awaitDeath()
	}
	if u.ctx.Err() != nil { // of several the first: what is told to stop takes nothing
		return fmt.Errorf("grace: Ready: %w", ErrStopped)
	}
	return err
}

// awaitDeath waits until old, which can't be heard, is proven to be dead.
func (u *Upgrader) awaitDeath() error {
	p := u.parent
	limit := time.NewTimer(deafPatience)
	defer limit.Stop()
	select {
	case <-p.gone:
	case <-u.ctx.Done():
	case <-limit.C:
		return fmt.Errorf("grace: Ready: %w: the old process, pid %d, lives, and its control channel can't be read", ErrProtocol, p.m.Pid)
	}
	return nil
}

// mayAccept reports whether this process may accept by now, for all that old knows,
// and be named by the PID file.
func (p *parent) mayAccept() bool {
	select {
	case <-p.goAhead:
		return true
	default:
		return false
	}
}

// failReady tells old why, so that its log has the reason too.
func (u *Upgrader) failReady(err error) error {
	if u.parent != nil {
		why := err.Error()
		u.parent.ch.send(message{typ: msgFailed, payload: []byte(why[:min(len(why), maxPayload)])})
		u.parent.ch.flush(time.Second)
	}
	return err
}

// HasParent says whether an old process started this one and handed its
// sockets over; it stays true when that process is gone.
func (u *Upgrader) HasParent() bool { return u.parent != nil }

// WaitForParent returns when the old process is gone, or at once if there was
// none. The error is the context's.
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
