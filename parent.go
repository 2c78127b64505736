package grace

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/julofinance/grace/v3/internal/control"
	"github.com/julofinance/grace/v3/internal/fd"
	"github.com/julofinance/grace/v3/internal/manifest"
	"github.com/julofinance/grace/v3/internal/proc"
	"github.com/julofinance/grace/v3/internal/sockets"
)

// A parent is the old process, as the new one sees it.
type parent struct {
	ch      *control.Channel
	ready   *os.File // readiness pipe
	m       manifest.Manifest
	goAhead chan struct{} // closed when the old process has said go
	deaf    chan struct{} // closed when nothing more is heard of the old process, dead or alive
	gone    chan struct{} // closed when the old process is proven to be dead
	life    proc.Life
	claims  atomic.Bool // the claims are being made: what is taken later is told in a message of its own
	told    []int       // the sockets of the claims that the old process was told
	turn    turn
	pidLock *os.File // the lock of the old process's PID file; nil: it has none

	// lingers is called when the old process has said that it lingers, with this
	// process's end of its leash.
	lingers func(*net.UnixConn)
}

// joinParent reads the manifest. The old process wrote it before it started this
// one.
func joinParent(h *handover, limit time.Duration) (*parent, error) {
	if h.version != protocolVersion {
		return nil, fmt.Errorf("grace: %w: the old process speaks version %d of it, this one %d; stop the old one and start this one once", ErrProtocol, h.version, protocolVersion)
	}
	conn, ready, err := h.open()
	if err != nil {
		return nil, fmt.Errorf("grace: control channel: %w", err)
	}
	p := &parent{ch: control.New(conn), ready: ready, goAhead: make(chan struct{}), deaf: make(chan struct{}), gone: make(chan struct{})}
	p.ch.Allow(h.count)
	p.ch.Socket().SetReadDeadline(time.Now().Add(limit))
	m, err := p.ch.Next()
	p.ch.Socket().SetReadDeadline(time.Time{})
	if err == nil && m.Type != msgManifest {
		err = fmt.Errorf("%w: it begins with a message %q", ErrProtocol, m.Type)
	}
	if err == nil {
		err = m.Decode(&p.m)
	}
	if err == nil && len(p.m.Sockets) != h.count {
		err = fmt.Errorf("%w: the manifest names %d sockets, and %d were passed", ErrProtocol, len(p.m.Sockets), h.count)
	}
	if err != nil {
		err = fmt.Errorf("grace: the manifest of the old process can't be read: %w", err)
	} else if saysLeft(p.ch) {
		err = fmt.Errorf("grace: %w: it was started too late, and the old process, pid %d, does not wait for it any more", ErrStopped, p.m.Pid)
	}
	if err != nil {
		p.ch.Close()
		ready.Close()
		return nil, err
	}
	return p, nil
}

// run listens to the parent until it is proven to be dead, and posts what it says.
// socks has the listeners for connections that come this way; over ends this process.
func (p *parent) run(log *slog.Logger, socks *sockets.Set, over <-chan struct{}, post func(event) bool) {
	r := &sockets.Receiver{Ch: p.ch, Find: socks.Taker, Held: map[uint32]*sockets.Received{}}
	p.ch.Run(func(m control.Message) {
		switch m.Type {
		case sockets.MsgConns:
			if err := r.OnConns(m); err != nil {
				log.Error("grace: connections that were moved here can't be taken; the old process keeps them", "err", err)
			}
			return
		case sockets.MsgProbe:
			socks.TakeProbe(m)
			return
		case sockets.MsgVerdict:
			if err := r.OnVerdict(m); err != nil {
				log.Error("grace: connections that were moved here can't be taken", "err", err)
			}
		case msgGo:
			select {
			case <-p.goAhead:
			default:
				close(p.goAhead)
			}
		case msgStop:
			var s stopMessage
			if m.Decode(&s) == nil {
				post(evStop{stopRequest{at: time.Now(), now: s.Now, passedOn: true}})
			}
		case msgPing: // in a goroutine: it may hang, and what else the parent sends is to be read
			go post(evPing{})
		case msgUpgrade:
			post(evSignal{fromPeer, time.Now()})
		case msgMain:
			post(evMain{})
		case msgWatched:
			post(watchedOf(m))
		case msgLinger:
			m.FDs = p.onLinger(log, m.FDs)
		}
		fd.CloseAll(m.FDs)
	}, func(err error) {
		close(p.deaf)
		if !p.outlive(log, over, err) {
			return // this process ends first
		}
		r.OnEnd()
		p.ch.Close()
		p.life.Close()
		close(p.gone)
		post(evParentGone{})
	})
	go p.watchLife(over)
}

// onLinger takes the leash of the old process, which lingers, and returns what is to be
// closed. If the leash has not arrived, since this process has no room for a descriptor,
// the old process sees that the other end is closed, and ends soon.
func (p *parent) onLinger(log *slog.Logger, fds []int) []int {
	if len(fds) != 1 {
		log.Warn("grace: the leash of the old process, which lingers, has not arrived; that one ends within its DrainTimeout", "old", p.m.Pid)
		return fds
	}
	conn, err := fd.NewUnixConn(fds[0])
	if err != nil {
		log.Warn("grace: the leash of the old process, which lingers, can't be used; that one ends within its DrainTimeout", "old", p.m.Pid, "err", err)
		return nil
	}
	p.lingers(conn)
	return nil
}

// watchLife ends the channel when the parent is dead. Another process that has
// the parent's end of it would keep it open, such as a child of the parent's that
// hangs in execve, which has every descriptor until then. What the parent has
// sent is read before: a socket that is shut down for reading gives what is
// queued, and then its end.
func (p *parent) watchLife(over <-chan struct{}) {
	if p.life.Await(over) {
		p.ch.Socket().CloseRead()
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

// outlive waits until the parent is proven to be dead. The end of the channel, for
// the reason err, does not prove that.
func (p *parent) outlive(log *slog.Logger, over <-chan struct{}, err error) bool {
	warn := time.AfterFunc(deafPatience, func() {
		log.Warn("grace: the old process can't be heard any more; what it has is left to it until the kernel says that it is dead", "old", p.m.Pid, "err", err)
	})
	defer warn.Stop()
	return p.life.Await(over)
}

// deafPatience is how long the old process may take to be dead when its end of
// the channel is closed.
const deafPatience = 2 * time.Second

// awaitGo waits until the old process has said go, or is dead. If it lives and
// can't be heard, it may think that this process never accepts: then this process
// must not.
func (p *parent) awaitGo(ctx context.Context) (err error) {
	select {
	case <-p.goAhead:
	case <-p.gone:
	case <-ctx.Done():
	case <-p.deaf:
		err = p.awaitDeath(ctx)
	}
	if ctx.Err() != nil { // also if another case was ready: a process that is told to stop takes nothing
		return fmt.Errorf("grace: Ready: %w", ErrStopped)
	}
	if err == nil && !p.turn.take() {
		err = fmt.Errorf("grace: Ready: %w", ErrStopped)
	}
	return err
}

// awaitDeath waits until the old process, which can't be heard, is proven to be
// dead.
func (p *parent) awaitDeath(ctx context.Context) error {
	limit := time.NewTimer(deafPatience)
	defer limit.Stop()
	select {
	case <-p.gone:
	case <-ctx.Done():
	case <-limit.C:
		return fmt.Errorf("grace: Ready: %w: the old process, pid %d, lives, and its control channel can't be read", ErrProtocol, p.m.Pid)
	}
	return nil
}

// A turn settles what comes first in this process, go or a stop: only in one order may it
// accept, and be named by the PID file, and the old process is told the same.
type turn struct{ is atomic.Int32 }

const (
	turnTaken   int32 = iota + 1 // go came first
	turnForgone                  // the stop did
)

// take takes the turn, and reports whether no stop came first.
func (t *turn) take() bool { return t.is.CompareAndSwap(0, turnTaken) }

// forgo gives the turn up, and reports whether it was not taken before.
func (t *turn) forgo() bool {
	t.is.CompareAndSwap(0, turnForgone)
	return t.is.Load() == turnForgone
}
