package grace

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/julofinance/grace/v3/internal/sdnotify"
)

// What an Upgrader tells systemd, and when.

// theServiceManager is taken before main begins, so that what the program
// starts does not inherit its variables.
var theServiceManager, theServiceManagerErr = sdnotify.TakeManager()

// findServiceManager finds systemd: a first process in the environment, later ones in
// the manifest. Under a master this process tells systemd nothing: the master is what
// systemd has started.
func (u *Upgrader) findServiceManager() {
	m := u.sys.manager
	switch {
	case u.parent != nil:
		m = u.parent.m.Systemd
	case u.underMaster():
		m = nil
	case u.sys.managerErr != nil:
		u.log.Warn("grace: a variable of systemd's is not understood", "err", u.sys.managerErr)
	}
	u.notify = sdnotify.New(m, u.log, u.parent == nil)
}

func (u *Upgrader) serves() string {
	return fmt.Sprintf("generation %d serves as pid %d", u.generation, os.Getpid())
}

func (u *Upgrader) drains() string {
	return fmt.Sprintf("generation %d, pid %d, drains; the service ends", u.generation, os.Getpid())
}

func (u *Upgrader) nextServes() string {
	return fmt.Sprintf("generation %d serves as pid %d", u.generation+1, u.m.child.pid)
}

// tellFailed has systemctl status show that an upgrade has failed, until the next begins.
func (u *Upgrader) tellFailed(what string, err error) {
	if u.m.stop != notStopping {
		return // systemd knows that this process ends
	}
	u.notify.Ready(fmt.Sprintf("%s; %s at %s: %s", u.serves(), what, time.Now().Format(time.TimeOnly), strings.TrimPrefix(err.Error(), "grace: ")))
}

// handOverMain returns the function that makes the successor the main process, after
// which this process exits. It is nil if systemd is not to be told.
func (u *Upgrader) handOverMain() (tell func()) {
	if u.notify == nil || u.child == nil || !u.m.child.went() {
		return nil
	}
	return u.notify.MoveMain(u.child.proc.Pid(), u.nextServes())
}

// onMain makes this process the main one: the old process has announced it, or is dead.
// If it is dead, systemd may read our message before it knows of that death, and drop the
// message, so it is sent again.
func (u *Upgrader) onMain(announced bool) {
	if !u.notify.BecomeMain() {
		return
	}
	u.notify.Alive()
	if announced || u.m.state == starting {
		return
	}
	u.tellServing()
	for _, d := range []time.Duration{250 * time.Millisecond, 2 * time.Second} {
		time.AfterFunc(d, func() { u.post(u.tellServing) })
	}
}

func (u *Upgrader) tellServing() {
	if u.m.state == serving || u.m.state == resuming {
		u.notify.Ready(u.serves())
	}
}

// runWatchdog tells systemd's watchdog that this process is well, three times in the
// time that it allows, so that one message may get lost.
func (u *Upgrader) runWatchdog() {
	period := u.notify.Watchdog() / 3
	if period == 0 {
		return
	}
	go func() {
		tick := time.NewTicker(period)
		defer tick.Stop()
		for {
			if u.well(period) && !u.post(func() { u.notify.Alive() }) {
				return
			}
			select {
			case <-tick.C:
			case <-u.over:
				return
			}
		}
	}()
}

func (u *Upgrader) well(limit time.Duration) bool {
	check := u.opt.watchdog
	if check == nil {
		return true
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if err := u.callHook(ctx, "Watchdog", check); err != nil {
		u.log.Warn("grace: systemd's watchdog is not told that this process is well", "err", err)
		return false
	}
	return true
}
