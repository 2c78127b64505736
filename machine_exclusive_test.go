package grace

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// trace gives a machine events by their names, and what comes of each: the effects, those that
// send a message among them, the timers, and the state.
func (w *sim) trace(names string) (steps []string) {
	for _, name := range strings.Fields(names) {
		timers := len(w.timers)
		w.to(name)
		steps = append(steps, w.did...)
		for _, e := range w.timers[timers:] {
			steps = append(steps, fmt.Sprintf("timer %T", e))
		}
		steps = append(steps, w.m.state.String())
	}
	return steps
}

// TestNothingExclusive: what the machine does for exclusive state is nothing where there is
// none. No step, no message and no timer is there, whether the new version waits for such
// state or not; with it, each that this test looks for is.
func TestNothingExclusive(t *testing.T) {
	const begins, ends = "ready upgrade launch line ", " accept probation pong drained pong finished"
	none := newSim(false, false, false).trace(begins + "claims" + ends)
	if got := newSim(false, false, false).trace(begins + "claimsExclusive" + ends); !slices.Equal(got, none) {
		t.Errorf("the new version waits for what this one does not have; it does\n%q, and else\n%q", got, none)
	}
	w := newSim(false, false, false)
	w.exclusive, w.m.exclusive = true, true
	with := w.trace(begins + "claimsExclusive drained released accept moved probation pong drained pong finished")
	for _, only := range []string{"pause", "release", "move held", "timer grace.evPauseLate", releasing.String()} {
		if !slices.Contains(with, only) {
			t.Errorf("with exclusive state there is no step %q in %q", only, with)
		}
		if slices.Contains(none, only) {
			t.Errorf("without, there is the step %q in %q", only, none)
		}
	}
	sends := func(steps []string) (all []string) {
		for _, s := range steps {
			if strings.HasPrefix(s, "send") {
				all = append(all, s)
			}
		}
		return all
	}
	if a, b := sends(none), sends(with); len(a) == 0 || !slices.Equal(a, b) {
		t.Errorf("the messages are %q without, and %q with exclusive state", a, b)
	}
}

// TestStopsThatArePostponed: two signals that come while what waited is on its way to the new
// process are two, when that is over: the second makes the stop urgent, here and there.
func TestStopsThatArePostponed(t *testing.T) {
	for _, c := range []struct {
		stops  string
		urgent bool
	}{{"stop", false}, {"stop stop", true}, {"shutdown stop", false}} {
		w := newSim(false, false, false)
		w.exclusive, w.m.exclusive = true, true
		if before := w.trace("ready upgrade launch line claimsExclusive drained released accept " + c.stops); slices.Contains(before, "stopping") {
			t.Fatalf("%s: not postponed: %q", c.stops, before)
		}
		steps := w.trace("moved")
		for _, effect := range []string{"hurry", "send stop true"} {
			if slices.Contains(steps, effect) != c.urgent {
				t.Errorf("%s: the effect %q is there: %v, want %v; all: %q", c.stops, effect, !c.urgent, c.urgent, steps)
			}
		}
		if !slices.Contains(steps, "stopping") {
			t.Errorf("%s: the process does not stop: %q", c.stops, steps)
		}
	}
}
