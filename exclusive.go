package grace

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/julofinance/grace/v3/internal/serve"
	"github.com/julofinance/grace/v3/internal/sockets"
)

// Exclusive gives the two functions by which what only one process at a time may have
// changes hands: a lock, a database file with one writer, state in memory that is
// written to a file. machine_steps.go has the order, and why nothing is lost.
//
// acquire is called by [Upgrader.Ready], before this process accepts anything: in a
// first process, and in a new one when the old one has released. An error, or a panic,
// makes Ready fail, with ErrExclusive. release is called when this process ends, after
// the drain, and at an upgrade: the new process prepares itself and calls Ready; then
// the old one accepts no more, finishes what it has begun, and calls release, while
// what comes waits, in the kernel's queues and on idle connections, for the new process.
// Clients see a pause, and no error.
//
// If what has begun is not finished within [ExclusiveTimeout], or release or acquire
// fails or takes longer than that, or the new process dies at any time, the old process
// calls acquire again, if it has called release, and serves on. So each may be called
// several times in one process, in turn, and never both at once. After release, whatever
// it has returned, the next call is acquire or none. If that fails in the old process
// the service ends, with ErrExclusive from Run and Serve: it is a crash. Each gets a
// context that ends with ExclusiveTimeout, and must return then: a release that never
// does lets no acquire be called, and ends the service as well.
//
// What is finished before release: the requests and connections of all servers that were
// given to the Upgrader. HTTP/1 connections that can move (see [MoveConns]) wait, and go
// to the new process as soon as it accepts. Others are finished as in a drain: each gets
// its last answer, or GOAWAY; an idle one may stay so for [IdleGrace] before it is
// closed, which makes the pause that long. A hijacked one is waited for. What works for
// no connection, such as a cron job or a reader of packets, release has to stop, and
// acquire to begin.
//
// If an old version without Exclusive starts a new one that has it, acquire is called
// while the old one still serves. Under a master (socketmaster, einhorn, start_server)
// so it is at each upgrade. acquire waits, or fails, as long as the old one has it.
//
// docs/exclusive.md has examples. Default: there is no such state, and no pause.
func Exclusive(acquire, release func(context.Context) error) Option {
	return func(o *options) error {
		if acquire == nil || release == nil {
			return errors.New("Exclusive: a function is nil; give one that returns nil if there is nothing to do")
		}
		o.acquire, o.release = acquire, release
		return nil
	}
}

// ExclusiveTimeout is how long each of three steps may take by which [Exclusive] state
// changes hands: finishing what has begun, release, and acquire. Clients wait for that
// long at most, three times, before the upgrade is given up. Default 10 seconds.
func ExclusiveTimeout(d time.Duration) Option {
	return positive("ExclusiveTimeout", d, func(o *options) { o.exclusive = d })
}

// CutAtRelease sets what becomes of requests and connections that are not finished
// within [ExclusiveTimeout] when [Exclusive] state is to change hands. Default false:
// they go on, and the upgrade fails with ErrExclusive. With true they are cut off. The log
// names them in either case.
func CutAtRelease(yes bool) Option {
	return func(o *options) error { o.cutAtRelease = yes; return nil }
}

// An exclusive calls acquire and release. Its methods do nothing if it is nil.
type exclusive struct {
	acquire, release func(context.Context) error
	limit            time.Duration
	turn             chan struct{} // holds one while either runs
	ready            chan struct{} // holds one from acquireFirst to the end of Ready, or when this process has ended
	acquired         bool          // by acquireFirst, for the goroutine of Ready
	began            time.Time     // when acquireFirst did, for the same
}

func (o *options) exclusiveState() *exclusive {
	if o.acquire == nil {
		return nil
	}
	return &exclusive{acquire: o.acquire, release: o.release, limit: o.exclusive, turn: make(chan struct{}, 1), ready: make(chan struct{}, 1)}
}

// call calls f, which is acquire or release. One that does not heed its context is left
// behind, and no other call begins before it has returned.
func (x *exclusive) call(ctx context.Context, u *Upgrader, name string, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, x.limit)
	defer cancel()
	select {
	case x.turn <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("%w: %s: a call before it has still not returned", ErrExclusive, name)
	}
	err := u.callBounded(ctx, name, "it", x.limit, f, func() { <-x.turn })
	if err != nil {
		return fmt.Errorf("%w: %s: %w", ErrExclusive, name, err)
	}
	return nil
}

// acquireFirst is acquire in a process that is about to accept for the first time.
func (x *exclusive) acquireFirst(u *Upgrader) error {
	if x == nil {
		return nil
	}
	select {
	case x.ready <- struct{}{}:
	default: // this process has ended
		return fmt.Errorf("grace: Ready: %w", ErrStopped)
	}
	x.began = time.Now()
	if err := x.call(u.ctx, u, "acquire", x.acquire); err != nil {
		if u.ctx.Err() != nil {
			return fmt.Errorf("grace: Ready: %w", ErrStopped)
		}
		return fmt.Errorf("grace: %w", err)
	}
	x.acquired = true
	return nil
}

// left is how much of the time for acquireFirst is left: the old process waits no longer.
func (x *exclusive) left() time.Duration { return x.limit - time.Since(x.began) }

// leaveReady ends what acquireFirst has begun. With err this process does not serve.
func (x *exclusive) leaveReady(u *Upgrader, err error) {
	if x == nil || x.began.IsZero() {
		return
	}
	if err != nil {
		x.releaseUnused(u)
	}
	<-x.ready
}

// awaitReady waits until a Ready that fails, since this process ends, has called release.
func (x *exclusive) awaitReady() {
	if x == nil {
		return
	}
	select {
	case x.ready <- struct{}{}:
	case <-time.After(x.limit + 2*hookGrace): // of release, when acquire was left behind
	}
}

// releaseUnused is release in a process that has acquired, and does not serve after all.
func (x *exclusive) releaseUnused(u *Upgrader) {
	if x != nil && x.acquired {
		x.acquired = false
		x.releaseLast(u)
	}
}

// releaseLast is release at the end of a process.
func (x *exclusive) releaseLast(u *Upgrader) {
	if err := x.call(context.Background(), u, "release", x.release); err != nil {
		u.log.Error("grace: exclusive state was not released at the end", "err", err)
	}
}

// The effects of the machine.

func (p performer) pause() {
	u := p.u
	u.pausedAt = time.Now()
	u.host.SetDraining(true) // a stream that would never end is in the way
	u.socks.Pause()
	var m *sockets.Mover
	if u.opt.move {
		m = u.child.mover
		m.Hold()
	}
	d := serve.NewDrain(m)
	u.drain = d
	go func() {
		d.Run(u.host.All(), math.MaxInt64)
		u.host.CutLeft(d)
		u.happen(evDrained{})
	}()
}

func (p performer) moveHeld() {
	id := p.u.child.id
	p.u.child.mover.Send(func() { p.u.happen(evMoved{id}) })
}

func (p performer) release() {
	p.u.host.Bar(true)
	go func() {
		p.u.happen(evReleased{p.u.exclusive.call(context.Background(), p.u, "release", p.u.exclusive.release)})
	}()
}

func (p performer) acquire() {
	go func() {
		p.u.happen(evAcquired{p.u.exclusive.call(context.Background(), p.u, "acquire", p.u.exclusive.acquire)})
	}()
}

func (p performer) lose(err error) {
	p.u.lost = fmt.Errorf("grace: %w", err)
	p.u.log.Error("grace: exclusive state can't be had back; this process ends, and no process serves", "err", err,
		"hint", "see why acquire failed, and start the service again")
}
