package grace

import (
	"slices"
	"testing"
)

// What the machine does to linger: see machine_test.go.

func (w *sim) makeLeash() {
	w.effect("make leash")
	w.pending["leash"]++
}
func (w *sim) linger() {
	w.effect("linger")
	w.pending["leave"]++
	if w.open || w.m.child.stage != accepting {
		w.breaks("it lingers, and no other process serves")
	}
	if w.mine {
		w.breaks("it lingers with the exclusive state")
	}
}
func (w *sim) limitDrain()                   { w.effect("limit drain") }
func (w *sim) pullLeash(stop, now bool)      { w.effect("pull leash: stop %v %v", stop, now) }
func (w *sim) endLingerer(pid int, now bool) { w.effect("tell lingerer %d: end %v", pid, now) }
func (w *sim) sayOfLingerer(n notice, pid int) {
	w.effect("say %v %d", n, pid)
}

// TestLingererThatDoesNotEnd: it was told to, and an upgrade waits for it, but not for ever.
func TestLingererThatDoesNotEnd(t *testing.T) {
	w := newSim(false, false, false)
	w.m.parent, w.m.parentPid = parentAlive, 6
	w.to("ready parentLingers parentGone")
	w.on(evUpgrade{w.request()})
	if w.m.state != serving || !w.m.has(wanted) {
		t.Errorf("a process lingers, none may, and the state is %v; want that the upgrade waits", w.m.state)
	}
	w.to("lingererStuck")
	if w.m.state != upgrading || !slices.Contains(w.did, "say lingerer stuck 6") {
		t.Errorf("it does not end, the state is %v, and the effects are %q; want that the upgrade begins", w.m.state, w.did)
	}
}

// TestLingererThatIsWatched: one that lingers, and that a supervisor takes for the service,
// ends last: it waits for the process that serves, which does not wait for it.
func TestLingererThatIsWatched(t *testing.T) {
	w := newSim(false, false, false)
	w.service = true
	w.beginLingering()
	w.to("stop drained")
	if w.m.state != holding {
		t.Errorf("it was told to stop, has drained, and is %v, want that it waits for the process that serves", w.m.state)
	}
	w.to("leashGone")
	if w.m.state != stopped {
		t.Errorf("the process that served is gone, and it is %v, want %v", w.m.state, stopped)
	}

	w = newSim(false, false, false)
	w.service = true
	w.beginLingering()
	w.to("leashGone stop drained")
	if w.m.state != stopped {
		t.Errorf("there was no process that served, and it is %v, want %v", w.m.state, stopped)
	}

	w = newSim(false, false, false)
	w.m.parent, w.m.parentPid = parentAlive, 6
	w.to("ready parentLingers")
	w.on(evStop{stopRequest{reason: "a supervisor", watched: 6}})
	w.to("drained")
	if w.m.state != stopped {
		t.Errorf("only the one that waits for it lingers, and it is %v, want %v", w.m.state, stopped)
	}
}
