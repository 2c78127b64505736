package grace

// What the machine does to linger: see machine_test.go.

func (w *sim) makeLeash() {
	w.effect("make leash")
	w.pending["leash"]++
}
func (w *sim) linger() {
	w.effect("linger")
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
