package grace

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// Where the features meet: machine_test.go's simulator.

// A stop that comes while a sick child is being killed waits for its end: no process serves
// what is in the queues, if this one drains with its gates shut.
func TestMeetStopWhileSickIsKilled(t *testing.T) {
	for name, way := range map[string]string{
		"standing by":        "ready upgrade launch line claims accept sick stop exit",
		"standing by, leave": "ready upgrade launch line claims accept sick leave exit",
		"draining":           "ready upgrade launch line claims accept probation pong sick stop exit",
		"draining, over":     "ready upgrade launch line claims accept probation pong drained sick stop exit",
		"child was told too": "ready upgrade launch line claims accept sick childStops exit",
	} {
		w := newSim(false, false, false)
		w.to(way)
		opened := false
		for _, l := range w.log {
			opened = opened || strings.Contains(l, "reopen gates")
		}
		if !opened {
			t.Errorf("%s: the gates were never reopened; the state is %v\n%v", name, w.m.state, w.log[len(w.log)-3:])
		}
		if w.m.stop == notStopping {
			t.Errorf("%s: the stop is forgotten", name)
		}
	}
}

// An answer that was on its way when the child was killed counts no more.
func TestMeetPongOfKilled(t *testing.T) {
	for name, way := range map[string]string{
		"draining, over":  "ready upgrade launch line claims accept probation pong drained sick pong",
		"standing by":     "ready upgrade launch line claims accept probation sick pong",
		"draining, asked": "ready upgrade launch line claims accept probation pong drained silence pong",
	} {
		w := newSim(false, false, false)
		w.to(way)
		if slices.Contains(w.did, "finish") || slices.Contains(w.did, "drain") {
			t.Errorf("%s: the effects are %q", name, w.did)
		}
	}
	w := newSim(false, false, false)
	w.mayLinger()
	w.to("ready upgrade launch line claims accept probation pong settled leashMade sick pong")
	if w.m.state == lingering {
		t.Errorf("it lingers beside a child that is killed: %q", w.did)
	}
}

// A child that has given up is no reason not to be a lame duck.
func TestMeetLameWithLeaving(t *testing.T) {
	w := newSim(false, false, false)
	w.m.limits.lame = time.Second
	w.to("ready upgrade launch line claims accept childLeaves stop")
	if w.m.state != lameDuck {
		t.Errorf("the state is %v, %q", w.m.state, w.did)
	}
}

// Probation is over while connections that were held are on their way: they are no drain's
// yet, and this process must not end before they are the child's.
func TestMeetMovingOutlastsProbation(t *testing.T) {
	w := newSim(false, false, false)
	w.excl("ready upgrade launch line claimsExclusive drained released accept probation pong")
	if w.m.state != standingBy {
		t.Errorf("connections are on their way, and the state is %v", w.m.state)
	}
	w.to("moved")
	if w.m.state != draining {
		t.Errorf("nothing is on its way any more, and the state is %v", w.m.state)
	}
}

// A child that is killed since it hangs after go takes no queue over: this process is a lame
// duck all the same.
func TestMeetStopWhileHungIsKilled(t *testing.T) {
	w := newSim(false, false, false)
	w.m.limits.lame = time.Second
	w.to("ready upgrade launch line claims lateAtGo stop")
	if w.m.state != lameDuck || slices.Contains(w.did, "leave end") {
		t.Errorf("the state is %v: %q", w.m.state, w.did)
	}
	w.to("exit")
	if w.m.state != lameDuck {
		t.Errorf("the child is dead, and the state is %v: %q", w.m.state, w.did)
	}
}

// A child that can't be killed keeps the exclusive state for ever: a process that is told to
// end at once does not wait for that.
func TestMeetStopWhileUnkillableHasTheState(t *testing.T) {
	for _, way := range []string{"", " probation pong", " probation pong drained"} {
		w := newSim(false, false, false)
		w.excl("ready upgrade launch line claimsExclusive drained released accept moved" + way)
		w.unkillable = true
		w.to("sick stop")
		if w.m.state != acquiring {
			t.Errorf("after%s: the state is %v, want that it waits", way, w.m.state)
		}
		w.to("close")
		w.settleAll(t)
		if w.m.state != stopped || len(w.broken) > 0 {
			t.Errorf("after%s: told to end at once, and the state is %v, %v", way, w.m.state, w.broken)
		}
	}
}
