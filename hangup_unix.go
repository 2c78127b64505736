//go:build unix

package grace

import (
	"os"
	"os/signal"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// SIGHUP is two things. The kernel sends it when the terminal goes away (see
// setsid(2) and credentials(7)); and operators send it, as other daemons read
// their configuration again then. Its default action, to end at once, loses
// requests in both cases. So:
//
//   - the terminal that this process was started from is gone: drain and stop,
//     as at SIGTERM; unless it is gone because the old process led the session
//     and has exited, as it should after an upgrade: then go on without it;
//   - anything else: nothing happens. The program may handle it as well, and
//     UpgradeSignals(syscall.SIGHUP) makes it ask for an upgrade;
//   - it was ignored when the process was started (nohup): it stays so.

// earlyHangup swallows a SIGHUP that reaches a new process between its start and
// New: a program that signals the whole process group does not know of this
// process, and the upgrade would fail. (What else a supervisor sends does not end
// a Go program, or is meant to.)
var earlyHangup = swallowHangup()

func swallowHangup() chan os.Signal {
	if inherited == nil || signal.Ignored(syscall.SIGHUP) {
		return nil
	}
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGHUP)
	return c
}

// endEarlyHangup leaves SIGHUP to what handles it from New on.
func endEarlyHangup() {
	if earlyHangup != nil {
		signal.Stop(earlyHangup)
	}
}

// handleHangup handles SIGHUP, unless it is one of others, until end is closed; a
// SIGHUP that comes after that does nothing.
func (u *Upgrader) handleHangup(others []os.Signal, end <-chan struct{}) {
	if signal.Ignored(syscall.SIGHUP) || slices.Contains(others, os.Signal(syscall.SIGHUP)) {
		return
	}
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	terminal := hasTerminal()
	go func() {
		for {
			select {
			case <-hangup:
				if terminal && !hasTerminal() {
					terminal = false
					u.post(u.onTerminalGone)
				}
			case <-end:
				return
			}
		}
	}()
}

func (u *Upgrader) onTerminalGone() {
	if sid, err := unix.Getsid(0); err == nil && u.parent != nil && sid == u.parent.m.Pid {
		u.log.Info("grace: the terminal went away with the old process, which led its session; this one goes on without it", "old", sid)
		return
	}
	u.m.on(evStop{stopRequest{signal: syscall.SIGHUP}})
}

// hasTerminal reports whether this process has a controlling terminal.
func hasTerminal() bool {
	fd, err := unix.Open("/dev/tty", unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	unix.Close(fd)
	return true
}
