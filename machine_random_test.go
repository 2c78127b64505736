package grace

import (
	"errors"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The machine, at events that come at random: see machine_test.go.

// The things that may happen; each is tried whether it makes sense now or not,
// except for what only a living child can do.
var happenings = []func(w *sim, n byte){
	func(w *sim, n byte) { w.on(evReady{make(reply, 1)}) },
	func(w *sim, n byte) { w.on(evUpgrade{w.request()}) },
	func(w *sim, n byte) { w.on(evSignal{name: "user defined signal 2", at: w.m.now()}) },
	func(w *sim, n byte) { w.on(evStop{stopRequest{signal: syscall.SIGTERM}}) },
	func(w *sim, n byte) { w.on(evStop{stopRequest{leave: true}}) },
	func(w *sim, n byte) { w.on(evStop{stopRequest{at: w.later(n)}}) },
	func(w *sim, n byte) { w.on(evStop{stopRequest{now: true, at: w.later(n)}}) },
	func(w *sim, n byte) { w.on(evStop{stopRequest{signal: syscall.SIGINT, at: w.later(n)}}) },
	func(w *sim, n byte) { w.on(evStop{stopRequest{passedOn: true, now: n&1 == 1}}) },
	func(w *sim, n byte) {
		if w.parentLives() {
			w.on(evParentGone{})
		}
	},
	func(w *sim, n byte) {
		if w.parentLives() {
			w.on(evMain{})
		}
	},
	func(w *sim, n byte) { w.complete("launch") },
	func(w *sim, n byte) { w.failLaunch() },
	func(w *sim, n byte) { w.complete("lame") },
	func(w *sim, n byte) { w.complete("drain") },
	func(w *sim, n byte) { w.complete("resume") },
	func(w *sim, n byte) { w.complete("restore") },
	func(w *sim, n byte) { w.complete("finish") },
	func(w *sim, n byte) { w.complete("master") },
	func(w *sim, n byte) { w.complete("moved") },
	func(w *sim, n byte) { w.complete("release") },
	func(w *sim, n byte) { w.complete("acquire") },
	func(w *sim, n byte) {
		if w.pending["release"] > 0 {
			w.on(evReleased{errors.New("why")})
		}
	},
	func(w *sim, n byte) {
		if w.pending["acquire"] > 0 {
			w.on(evAcquired{errors.New("why")})
		}
	},
	func(w *sim, n byte) {
		if len(w.timers) > 0 {
			i := int(n) % len(w.timers)
			e := w.timers[i]
			w.timers = append(w.timers[:i:i], w.timers[i+1:]...)
			w.on(e)
		}
	},
	func(w *sim, n byte) { w.child(evLine{id: w.m.child.id, line: readyLine}) },
	func(w *sim, n byte) { w.child(evLine{id: w.m.child.id, line: "hello\n"}) },
	func(w *sim, n byte) { w.child(evLine{id: w.m.child.id, err: errors.New("EOF")}) },
	func(w *sim, n byte) {
		w.child(evClaims{id: w.m.child.id, pongs: n&1 == 0, keeps: n&4 == 0, exclusive: n&2 == 0})
	},
	func(w *sim, n byte) { w.child(evClaims{id: w.m.child.id, err: errors.New("nonsense")}) },
	func(w *sim, n byte) { w.child(evAccepting{id: w.m.child.id, at: w.m.now()}) },
	func(w *sim, n byte) { w.child(evFailed{id: w.m.child.id, why: errors.New("why")}) },
	func(w *sim, n byte) {
		w.child(evChildStop{id: w.m.child.id, at: w.m.now(), leave: n&1 == 0, now: n&2 == 0, early: n&4 == 0})
	},
	func(w *sim, n byte) { w.child(evHandedOver{id: w.m.child.id, gone: n&1 == 0}) },
	func(w *sim, n byte) { w.child(evPong{id: w.m.child.id}) },
	func(w *sim, n byte) { w.child(evUnasked{id: w.m.child.id, err: errors.New("ENOBUFS")}) },
	func(w *sim, n byte) { w.child(evStuck{id: w.m.child.id, err: errors.New("stuck")}) },
	func(w *sim, n byte) { w.child(evDeaf{id: w.m.child.id, err: errors.New("deaf"), ours: n&1 == 0}) },
	func(w *sim, n byte) { w.child(evProbationOver{w.m.child.id, errors.New("sick")}) },
	func(w *sim, n byte) { w.exit() },
	func(w *sim, n byte) { w.unkillable = !w.unkillable },
	func(w *sim, n byte) { w.complete("leash") },
	func(w *sim, n byte) { w.complete("leave") },
	func(w *sim, n byte) {
		if w.pending["leash"] > 0 {
			w.on(evLeashMade{id: w.m.child.id, err: errors.New("EMFILE")})
		}
	},
	func(w *sim, n byte) {
		if w.m.state == lingering {
			w.on(evLeash{now: n&1 == 0, gone: n&2 == 0})
		}
	},
	func(w *sim, n byte) {
		if w.m.parent == parentAlive && w.m.state != starting {
			w.on(evParentLingers{})
		}
	},
	func(w *sim, n byte) {
		if all := w.m.lingerers; len(all) > 0 {
			w.on(evLingererGone{all[int(n)%len(all)].pid})
		}
	},
	func(w *sim, n byte) {
		if all := w.m.lingerers; len(all) > 0 {
			w.on(evLingererStuck{all[int(n)%len(all)].pid})
		}
	},
	func(w *sim, n byte) { w.on(evPing{}) },
	func(w *sim, n byte) { w.on(evMasterGone{}) },
	func(w *sim, n byte) { w.child(evTakes{w.m.child.id}) },
}

// later is a moment from now, or long after the child has begun to accept.
func (w *sim) later(n byte) time.Time {
	at := w.m.now()
	if n&1 == 1 {
		at = at.Add(2 * passOnFor)
	}
	return at
}

// advance is what happens next if all goes well.
func (w *sim) advance() {
	m := w.m
	c := &m.child
	switch {
	case m.state == starting:
		w.on(evReady{make(reply, 1)})
	case c.stage == launching:
		w.complete("launch")
	case c.stage == preparing && !c.line:
		w.child(evLine{id: c.id, line: readyLine})
	case c.stage == preparing && !c.claimed:
		w.child(evClaims{id: c.id, pongs: true, keeps: true, exclusive: w.exclusive})
	case m.state == releasing && c.stage == preparing && w.complete("drain"):
	case w.complete("moved"), w.complete("release"), w.complete("acquire"):
	case c.stage == going:
		w.child(evAccepting{id: c.id, at: m.now()})
	case c.waited:
		w.child(evPong{id: c.id})
	case m.state == standingBy:
		w.on(evProbationOver{id: c.id})
	case m.state == draining && w.wants && m.mayLinger() && m.lingers == noLingering && w.pending["leash"] == 0:
		w.on(evSettled{c.id})
	case w.complete("leash"), w.complete("leave"):
	case w.complete("drain"), w.complete("resume"), w.complete("restore"):
	case w.parentLives():
		w.on(evParentGone{})
	case c.stage == leaving:
		w.exit()
	case m.state == serving:
		w.on(evUpgrade{w.request()})
	}
}

func (w *sim) child(e event) {
	if w.childLives {
		w.on(e)
	}
}

// settleAll lets everything that is under way end.
func (w *sim) settleAll(t *testing.T) {
	for i := 0; ; i++ {
		if i == 1000 {
			t.Fatalf("it does not come to rest\n%s", strings.Join(w.log, "\n"))
		}
		some := false
		for _, what := range []string{"launch", "lame", "leash", "leave", "drain", "resume", "restore", "finish", "master", "moved", "release", "acquire"} {
			some = w.complete(what) || some
		}
		if !some {
			return
		}
	}
}

// endLeash: no process is left that could tell this one, which lingers, to end.
func (w *sim) endLeash() {
	if w.m.lingers == lingered {
		w.on(evLeash{gone: true})
	}
}

// goOn lets all go well, with a child that lives, until this process rests: it serves
// alone, or has ended.
func (w *sim) goOn(t *testing.T) {
	t.Helper()
	for range 300 {
		m := w.m
		c := &m.child
		switch {
		case len(w.broken) > 0, m.state == stopped && m.isOver(), m.state == serving && c.stage == noChild && !m.has(wanted) && m.restoring == 0 && !w.parentLives():
			return
		case c.killReason != nil, c.orderly && c.stage > launching, m.state == stopped && w.childLives, m.state == holding && w.childLives:
			w.exit()
		case w.complete("lame"), w.complete("leave"), w.complete("finish"), w.complete("master"):
		case m.stop != notStopping && (w.complete("drain") || w.complete("resume") || w.complete("restore")):
		case m.awaitsNewest && m.state == holding:
			w.endLeash()
		case len(m.lingerers) > 0 && m.lingerers[0].told:
			w.on(evLingererGone{m.lingerers[0].pid})
		default:
			w.advance()
		}
	}
	t.Fatalf("a child that lives leads nowhere: the state is %v, the child %v\n%s", w.m.state, w.m.child.stage, strings.Join(w.log, "\n"))
}

func runSim(t *testing.T, data []byte) {
	if len(data) < 2 {
		return
	}
	w := newSim(data[0]&1 == 1, data[0]&6 == 6, data[0]&8 == 8)
	if data[0]&16 == 16 {
		w.wants, w.m.limits.processes = true, 1+int(data[0]>>6&1)
	}
	if data[1]&1 == 1 {
		w.m.limits.lame = time.Second
	}
	w.service = data[1]&4 == 4
	for i := range int(data[0]>>6) * int(data[0]&1) { // an older process had them before
		w.m.lingerers = append(w.m.lingerers, lingerer{pid: 1000 + i})
	}
	w.exclusive = data[0]&32 == 32
	w.m.exclusive, w.m.limits.cuts = w.exclusive, data[0]&128 == 128
	for i := 2; i+1 < len(data) && len(w.broken) == 0; i += 2 {
		if data[i] >= 128 { // else it would hardly ever come to a hand-over
			w.advance()
			continue
		}
		happenings[int(data[i])%len(happenings)](w, data[i+1])
	}
	check := func(when string) {
		if len(w.broken) > 0 {
			t.Fatalf("%s: %s\n%s", when, strings.Join(w.broken, "; "), strings.Join(w.log, "\n"))
		}
	}
	check("at random")
	// No state is a trap.
	w.unkillable = false
	if data[1]&2 == 2 {
		w.goOn(t)
		check("after all has gone well")
	}
	// A child that dies leaves this process serving, or, if
	// it was told to stop, at its end.
	w.settleAll(t)
	w.exit()
	w.endLeash()
	w.settleAll(t)
	if w.parentLives() {
		w.on(evParentGone{})
	}
	for len(w.m.lingerers) > 0 {
		w.on(evLingererGone{w.m.lingerers[0].pid})
	}
	w.settleAll(t)
	w.exit() // of an upgrade that has waited
	w.settleAll(t)
	check("after the end of the child")
	if w.m.state == lingering || w.m.lingers == lingered && w.m.state != stopped {
		t.Fatalf("it lingers, and nothing is left; the state is %v\n%s", w.m.state, strings.Join(w.log, "\n"))
	}
	if w.wasReady && !w.lost && w.m.stop == notStopping && w.m.state != serving && w.m.state != stopped {
		t.Fatalf("no child is left, and the state is %v\n%s", w.m.state, strings.Join(w.log, "\n"))
	}
	if w.ends && w.m.state != stopped {
		t.Fatalf("the program has asked for the end, no child is left, and the state is %v\n%s", w.m.state, strings.Join(w.log, "\n"))
	}
	w.on(evStop{})
	w.settleAll(t)
	w.exit()
	w.settleAll(t)
	check("after a stop")
	if !w.doneClosed || !w.m.isOver() {
		t.Fatalf("told to stop, with no child left, it does not end: %v\n%s", w.m.state, strings.Join(w.log, "\n"))
	}
	for i, r := range w.replies {
		select {
		case <-r:
		default:
			t.Fatalf("request %d has no answer\n%s", i, strings.Join(w.log, "\n"))
		}
		select {
		case <-r:
			t.Fatalf("request %d has two answers", i)
		default:
		}
	}
}

func TestMachineAtRandom(t *testing.T) {
	for seed := range uint64(40000) {
		r := rand.New(rand.NewPCG(seed, 1))
		data := make([]byte, 2*(5+r.IntN(60)))
		for i := range data {
			data[i] = byte(r.Uint32())
		}
		runSim(t, data)
	}
}

// FuzzMachine looks for an order of events that breaks what always holds.
func FuzzMachine(f *testing.F) {
	f.Add([]byte{0, 0, 200, 0, 200, 0, 200, 0, 200, 0, 200, 0, 200, 0, 39, 0})          // the child dies on probation
	f.Add([]byte{1, 0, 200, 0, 4, 0})                                                   // this process gives up at once
	f.Add([]byte{32, 0, 200, 0, 200, 0, 200, 0, 200, 0, 200, 0, 200, 0, 200, 0, 39, 0}) // the child dies with the exclusive state
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) < 300 { // longer ones find nothing that shorter ones do not
			runSim(t, data)
		}
	})
}
