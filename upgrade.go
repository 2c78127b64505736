package grace

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/julofinance/grace/v3/internal/hint"
	"github.com/julofinance/grace/v3/internal/manifest"
	"github.com/julofinance/grace/v3/internal/proc"
	"github.com/julofinance/grace/v3/internal/sockets"
)

// A call of Upgrade, and what is looked at before a child is started.

// Upgrade starts a new process and returns nil when it has taken over, which is
// when [Probation] is over; this process then drains, and Done is closed. (A new
// process that dies while this one drains is still rolled back; the log says so,
// and Done stays open.) Otherwise it says why not, and this process goes on serving:
// an [*UpgradeError] with the reason ErrRefused, ErrStart, ErrExited,
// ErrReadyTimeout, ErrProtocol, ErrRolledBack or ErrUnhealthy.
//
// One upgrade runs at a time. A call during another one, or before this process
// is ready, or while its own old process drains, waits its turn, but see [Linger];
// several that wait are one. ErrHandedOver means that the upgrade before it succeeded and
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
	if !u.happen(evUpgrade{reply}) {
		return fmt.Errorf("grace: Upgrade: %w", ErrStopped)
	}
	select {
	case err := <-reply:
		u.opt.flushLog() // what the program writes about it is to come after our lines
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// launch starts the new process. It runs outside of the Upgrader's goroutine,
// since BeforeUpgrade may take its time.
func (u *Upgrader) launch(ctx context.Context, id int) (*child, error) {
	if err := u.wouldEndService(); err != nil {
		return nil, err
	}
	if err := u.mayUpgrade(ctx); err != nil {
		return nil, err
	}
	begun := time.Now()
	ctx, cancel := context.WithTimeout(ctx, u.opt.readyTimeout)
	defer cancel()
	c, err := u.startOrLeave(ctx, id)
	if err == nil {
		c.launched = begun
		return c, nil
	}
	failure := &UpgradeError{Reason: ErrStart, Err: err}
	var stuck *proc.StuckError
	if errors.As(err, &stuck) {
		failure.Pid, failure.Reason = stuck.Pid, ErrReadyTimeout
		if errors.Is(ctx.Err(), context.Canceled) {
			failure.Reason = ErrStopped
		}
	}
	return nil, failure
}

// mayUpgrade asks BeforeUpgrade.
func (u *Upgrader) mayUpgrade(ctx context.Context) error {
	check := u.opt.beforeUpgrade
	if check == nil {
		return nil
	}
	if !u.checking.CompareAndSwap(false, true) {
		return &UpgradeError{Reason: ErrRefused, Err: errors.New("BeforeUpgrade, called for an upgrade before, has still not returned")}
	}
	ctx, cancel := context.WithTimeout(ctx, u.opt.readyTimeout)
	defer cancel()
	err := u.callBounded(ctx, "BeforeUpgrade", "BeforeUpgrade", u.opt.readyTimeout, check, func() { u.checking.Store(false) })
	if errors.Is(err, errDeaf) && u.ctx.Err() != nil {
		err = ErrStopped
	}
	if err != nil {
		return &UpgradeError{Reason: ErrRefused, Err: err}
	}
	return nil
}

func (u *Upgrader) start(ctx context.Context, id int) (*child, error) {
	cmd := u.opt.command(u.home)
	cmd.Sibling = u.notify.WantsChildren()
	cmd, err := cmd.find(ctx)
	if err != nil {
		return nil, err
	}
	if err := proc.CheckRoom(); err != nil {
		return nil, hint.New(err, "raise the limit that the error names, or end what else counts there, and send the signal again")
	}
	plan := childPlan{id: id, sockets: u.socks, pid: u.pid, leashes: &u.leashes, manifest: u.manifest, grace: u.opt.idleGrace}
	plan.start = func(ready, control int, files []int) (proc.Process, error) {
		return u.begin(ctx, cmd, func(c command) (proc.Process, error) {
			if ctx.Err() != nil { // what hung until now was left behind
				return nil, &proc.StuckError{Path: c.Path, Doing: "for the PID file, the binary or a socket"}
			}
			return u.sys.start(ctx, c, ready, control, files)
		})
	}
	return startChild(ctx, plan)
}

func (u *Upgrader) manifest(socks []*sockets.Socket) *manifest.Manifest {
	m := &manifest.Manifest{
		Version: protocolVersion, Pid: os.Getpid(), Generation: u.generation + 1,
		Dir: u.home.dir, Path: u.home.path, Binary: u.home.real, Systemd: u.notify.Manager(), Carries: u.opt.saveState != nil, Sockets: make([]manifest.Entry, 0, len(socks)),
	}
	for _, s := range socks {
		e := s.Entry
		e.Tickets = u.host.Tickets(s)
		m.Sockets = append(m.Sockets, e)
	}
	return m
}
