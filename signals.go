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
	if u.opt.noSignals {
		return func() {}
	}
	upgrade := make(chan os.Signal, 1) // a full one says it all: upgrades coalesce
	if len(u.opt.signals) > 0 {
		signal.Notify(upgrade, u.opt.signals...)
	}
	stop := make(chan os.Signal, 2) // the first and the second
	signal.Notify(stop, slices.DeleteFunc(slices.Clone(stopSignals), func(s os.Signal) bool {
		return slices.Contains(u.opt.signals, s)
	})...)
	end := make(chan struct{})
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
