package grace

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"time"
)

// Who asks for an upgrade, and when it begins.

// Upgrade starts a new process and returns nil when it has taken over, which is
// when [Probation] is over; this process then drains, and Done is closed. (A new
// process that dies while this one drains is still rolled back; the log says so,
// and Done stays open.) Otherwise it says why not, and this process goes on serving:
// an [*UpgradeError] with the reason ErrRefused, ErrStart, ErrExited,
// ErrReadyTimeout, ErrProtocol or ErrRolledBack.
//
// One upgrade runs at a time. A call during another one, or before this process
// is ready, or while its own old process drains, waits its turn; several that
// wait are one. ErrHandedOver means that the upgrade before it succeeded and
// the request was passed on to the new process; ErrStopped that this process
// stops. If ctx ends first its error is returned and the upgrade goes on.
func (u *Upgrader) Upgrade(ctx context.Context) error {
	if !supported {
		return fmt.Errorf("grace: Upgrade: %w", ErrNotSupported)
	}
	if ctx == nil {
		return errors.New("grace: Upgrade: the context is nil; use context.Background()")
	}
	reply := make(chan error, 1)
	if !u.post(func() { u.onUpgrade(reply) }) {
		return fmt.Errorf("grace: Upgrade: %w", ErrStopped)
	}
	select {
	case err := <-reply:
		u.opt.logs.flush() // what the program writes about it comes after ours
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// onUpgradeSignal: this process was sent a signal, or old was and has passed it on.
func (u *Upgrader) onUpgradeSignal(name string, at time.Time) {
	if u.upgrades.again(name, at) {
		u.log.Info("grace: the same signal again; it counts as one", "signal", cmp.Or(name, "passed on"), "within", sameSignal)
		return
	}
	u.onUpgrade(nil)
}

func (u *Upgrader) onUpgrade(reply chan error) {
	switch {
	case u.state == yielded, u.next != nil && u.state > upgrading && !u.stopAsked:
		u.passOn(reply)
	case u.state == draining || u.state == stopped:
		u.reply(reply, fmt.Errorf("grace: Upgrade: %w", ErrStopped))
	default:
		u.pending = true
		if reply != nil {
			u.waiting = append(u.waiting, reply)
		}
		u.settle()
		if u.pending {
			u.log.Info("grace: upgrade asked; it waits its turn", "until", u.inTheWay())
		}
	}
}

func (u *Upgrader) passOn(reply chan error) {
	u.passed = true
	u.tellPeer(u.next.ch, u.next.proc.pid(), newMessage(msgUpgrade, nil), "upgrade")
	u.log.Info("grace: upgrade asked of a process that has handed over; passed on", "new", u.next.proc.pid())
	u.reply(reply, fmt.Errorf("grace: Upgrade: %w", ErrHandedOver))
}

func (u *Upgrader) reply(c chan error, err error) {
	if c != nil {
		c <- err
	}
}

// answer tells the callers of the running upgrade how it went.
func (u *Upgrader) answer(err error) {
	tell(u.current, err)
	u.current = nil
}

func tell(callers []chan error, err error) {
	for _, c := range callers {
		c <- err
	}
}

// inTheWay says what an upgrade that is wanted waits for; "" is nothing. At most
// two generations run.
func (u *Upgrader) inTheWay() string {
	switch {
	case u.state == starting:
		return "this process is ready"
	case u.state == upgrading:
		return "the upgrade under way is over"
	case u.state != serving:
		return "never"
	case u.next != nil:
		return fmt.Sprintf("the new process that has given up, pid %d, is gone", u.next.proc.pid())
	case u.restoring > 0:
		return "what the last upgrade had taken is back in place"
	case u.drain != nil:
		return "the drain that was called off is over"
	case u.parent != nil && !u.parentGone:
		return fmt.Sprintf("the old process, pid %d, is gone", u.parent.m.Pid)
	}
	return ""
}

// settle begins the upgrade that is wanted, as soon as nothing is in its way.
func (u *Upgrader) settle() {
	if !u.pending || u.inTheWay() != "" {
		return
	}
	u.pending, u.passed = false, false
	u.current, u.waiting = append(u.current, u.waiting...), nil
	if u.underMaster() {
		u.askMaster()
		return
	}
	if !supported {
		u.log.Error("grace: upgrade failed; this process goes on serving", "err", ErrNotSupported)
		u.answer(fmt.Errorf("grace: Upgrade: %w", ErrNotSupported))
		return
	}
	u.state = upgrading
	u.launching = true
	u.log.Info("grace: upgrade begins", "pid", os.Getpid(), "generation", u.generation)
	u.notify.reloading(fmt.Sprintf("%s; generation %d is starting", u.serves(), u.generation+1))
	go func() {
		s, err := u.launch(u.ctx)
		u.post(func() { u.onLaunched(s, err) })
	}()
}
