package grace

// The exclusive state of a sim, see machine_test.go: mine from acquire to release, theirs from go to the child's end.

func (w *sim) pause() {
	w.effect("pause")
	w.open = false
	if w.pending["drain"]+w.pending["resume"] > 0 {
		w.breaks("two drains at once")
	}
	w.pending["drain"]++
}

func (w *sim) moveHeld() {
	w.effect("move held")
	w.pending["moved"]++
	if w.m.child.stage != accepting {
		w.breaks("connections are moved to a child that is %v", w.m.child.stage)
	}
}

func (w *sim) release() {
	w.effect("release")
	if !w.mine || w.pending["release"]+w.pending["acquire"] > 0 {
		w.breaks("released, and it was not acquired")
	}
	w.mine = false
	w.pending["release"]++
}

func (w *sim) acquire() {
	w.effect("acquire")
	if w.mine || w.theirs || w.pending["release"]+w.pending["acquire"] > 0 {
		w.breaks("acquired, and mine is %v, theirs %v, %v", w.mine, w.theirs, w.pending)
	}
	w.pending["acquire"]++
}

func (w *sim) lose(error) { w.effect("lose"); w.lost = true }
