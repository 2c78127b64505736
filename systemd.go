package grace

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"
)

// What an Upgrader tells systemd, and when.

// theServiceManager is taken before main begins, so that what the program
// starts does not inherit its variables.
var theServiceManager, theServiceManagerErr = takeServiceManager()

// findServiceManager: a first process has it from the environment, the others
// from the process before. One whose siblings overlap with it says nothing: it
// is its master that systemd has started.
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
	u.notify = newNotifier(m, u.log, u.parent == nil)
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

// tellFailed says that an upgrade came to nothing, until the next one begins.
func (u *Upgrader) tellFailed(what string, err error) {
	if u.m.stop != notStopping {
		return // systemd knows that this process ends
	}
	u.notify.ready(fmt.Sprintf("%s; %s at %s: %s", u.serves(), what, time.Now().Format(time.TimeOnly), strings.TrimPrefix(err.Error(), "grace: ")))
}

// handOverMain gives what makes the successor the main process, after which this
// one exits; nil if systemd is not to be told.
func (u *Upgrader) handOverMain() (tell func()) {
	if u.notify == nil || u.child == nil || !u.m.child.went() {
		return nil
	}
	return u.notify.moveMain(u.child.proc.pid(), u.nextServes())
}

// onMain: the old process has made this one the main process, or is dead. Then
// systemd may hear us before it knows about that, and drop what we say: so it
// is said again.
func (u *Upgrader) onMain(announced bool) {
	n := u.notify
	if n == nil || n.main {
		return
	}
	n.main = true
	n.say("WATCHDOG=1")
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
		u.notify.ready(u.serves())
	}
}

// runWatchdog tells systemd's watchdog that this process is well, three times
// in the time that it allows, so that one may get lost.
func (u *Upgrader) runWatchdog() {
	if u.notify == nil || u.notify.Watchdog == 0 {
		return
	}
	period := u.notify.Watchdog / 3
	go func() {
		tick := time.NewTicker(period)
		defer tick.Stop()
		for {
			if u.well(period) && !u.post(func() { u.notify.say("WATCHDOG=1") }) {
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

// systemdNetwork is the network of names: Listen("systemd", name) gives the
// socket that systemd calls so.
const systemdNetwork = "systemd"

// noSuchName is the error for a name that systemd has given to none.
func (s *sockets) noSuchName(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	have := []string{}
	for _, in := range s.unclaimed {
		if in.Name != "" {
			have = append(have, fmt.Sprintf("%s (%s %s)", in.Name, in.Network, in.Bound))
		}
	}
	if len(have) == 0 {
		return fmt.Errorf("grace: listen %s %s: %w: LISTEN_FDNAMES names no socket that is not taken; is this process started by a .socket unit with FileDescriptorName=%s?", systemdNetwork, name, ErrMaster, name)
	}
	return fmt.Errorf("grace: listen %s %s: %w: LISTEN_FDNAMES has only %s", systemdNetwork, name, ErrMaster, strings.Join(have, ", "))
}
