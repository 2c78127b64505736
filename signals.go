package grace

import (
	"os"
	"os/signal"
	"slices"
	"sync"
	"time"
)

// handleSignals turns signals into requests until release is called. Then the
// stop signals have their default action again, so that a program that hangs on
// its way out can be ended by one more, while a late upgrade signal, whose
// default action would kill, is still swallowed.
func (u *Upgrader) handleSignals() (release func()) {
	defer endEarlyHangup()
	if !u.opt.noSignals || u.underMaster() {
		surviveBrokenPipes()
	}
	if u.opt.noSignals {
		return func() {}
	}
	asks, stops := u.opt.upgradeOn, slices.Clone(u.opt.stopOn)
	if u.underMaster() {
		stops = append(stops, u.master.DrainSignals...)
		asks = without(asks, u.master.DrainSignals)
	}
	upgrade := make(chan os.Signal, 1) // room for one is enough: upgrades coalesce
	if len(asks) > 0 {
		signal.Notify(upgrade, asks...)
	}
	stop := make(chan os.Signal, 2) // the first and the second
	if len(stops) > 0 {             // Notify without one means every signal
		signal.Notify(stop, stops...)
	}
	// The time at which a signal has arrived must not depend on how long the
	// goroutine that owns the state takes for something else: so one goroutine
	// notes the time, and another one waits until the signal is handled.
	arrived, end := make(chan event, 64), make(chan struct{})
	u.handleHangup(append(stops, asks...), end)
	go func() {
		for {
			var e event
			select {
			case s := <-upgrade:
				at := time.Now()
				e = evSignal{signalName(s), at}
			case s := <-stop:
				at := time.Now()
				e = evStop{stopRequest{signal: s, at: at}}
			case <-end:
				return
			}
			select {
			case arrived <- e:
			default: // so many wait that one more changes nothing
			}
		}
	}()
	go func() {
		for {
			select {
			case e := <-arrived:
				u.happen(e)
			case <-end:
				return
			}
		}
	}()
	return sync.OnceFunc(func() {
		signal.Stop(stop)
		close(end)
	})
}

// sameSignal is the time in which the same signal counts once.
const sameSignal = 500 * time.Millisecond

// A repeats recognises one request that arrives several times. Supervisors signal
// a whole process group or cgroup (supervisord's stopasgroup, tini -g, dumb-init,
// systemd's KillMode=control-group, Ctrl-C in a terminal): both processes of a
// hand-over get the signal, each passes it on to the other, and a script between
// may pass it on once more. An operator that sends a signal again takes longer.
type repeats struct {
	counted map[string]time.Time // by the signal's name: when one has last counted
}

// fromPeer is the name of a request that the other process of a hand-over has
// passed on: of whatever signal.
const fromPeer = ""

// again reports whether a request that has arrived at that time is one that has
// counted already. If it is not, it counts.
func (r *repeats) again(name string, at time.Time) bool {
	for other, counted := range r.counted {
		// What the other process passes on has counted there.
		same := name == other && name != fromPeer || (name == fromPeer) != (other == fromPeer)
		// Two goroutines see requests arrive: a later one may come first here.
		if same && at.Sub(counted).Abs() < sameSignal {
			return true
		}
	}
	if r.counted == nil {
		r.counted = map[string]time.Time{}
	}
	r.counted[name] = at
	return false
}

// passedOn reports whether a request that the other process has passed on has
// counted a moment before.
func (r *repeats) passedOn(at time.Time) bool {
	counted, ok := r.counted[fromPeer]
	return ok && at.Sub(counted).Abs() < sameSignal
}

func signalName(s os.Signal) string { return s.String() }

// without returns those of signals that are not in others.
func without(signals, others []os.Signal) []os.Signal {
	return slices.DeleteFunc(slices.Clone(signals), func(s os.Signal) bool { return slices.Contains(others, s) })
}

// surviveBrokenPipes: the process that reads our output, a master or a
// supervisor, may die, and the next log line must not be our end. (The signal is
// caught for good, not ignored: what is ignored stays so in the processes that we
// start.)
func surviveBrokenPipes() {
	if len(pipeSignals) > 0 {
		signal.Notify(make(chan os.Signal, 1), pipeSignals...)
	}
}
