package grace

import (
	"os"
	"os/signal"
	"slices"
)

// handleSignals turns signals into requests until release is called. Then the
// stop signals have their default action again, so that a program that hangs on
// its way out can be ended by one more, while a late upgrade signal, whose
// default action would kill, is still swallowed.
func (u *Upgrader) handleSignals() (release func()) {
	if !u.opt.noSignals || u.underMaster() {
		surviveBrokenPipes()
	}
	if u.opt.noSignals {
		return func() {}
	}
	asks, stops := u.opt.signals, slices.Clone(stopSignals)
	if u.underMaster() {
		stops = append(stops, u.master.drainSignals...)
		asks = without(asks, u.master.drainSignals)
	}
	upgrade := make(chan os.Signal, 1) // a full one says it all: upgrades coalesce
	if len(asks) > 0 {
		signal.Notify(upgrade, asks...)
	}
	stop := make(chan os.Signal, 2)                   // the first and the second
	if stops = without(stops, asks); len(stops) > 0 { // Notify without one means every signal
		signal.Notify(stop, stops...)
	}
	end := make(chan struct{})
	u.handleHangup(append(stops, asks...), end)
	go func() {
		for {
			select {
			case <-upgrade:
				u.post(func() { u.onUpgrade(nil) })
			case s := <-stop:
				u.post(func() { u.onStop(stopRequest{signal: s}) })
			case <-end:
				return
			}
		}
	}()
	return func() {
		signal.Stop(stop)
		close(end)
	}
}

// without gives those of signals that others does not name.
func without(signals, others []os.Signal) []os.Signal {
	return slices.DeleteFunc(slices.Clone(signals), func(s os.Signal) bool { return slices.Contains(others, s) })
}

// surviveBrokenPipes: who reads our output, a master or a supervisor, may die,
// and the next log line must not be our end. (The signal is caught for good,
// not ignored: what is ignored stays so in the processes that we start.)
func surviveBrokenPipes() {
	if len(pipeSignals) > 0 {
		signal.Notify(make(chan os.Signal, 1), pipeSignals...)
	}
}
