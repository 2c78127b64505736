package grace

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write testdata/machine.txt anew")

// situations are the states, by the shortest way into each; where the child or the
// stop makes a difference, the state is there several times.
var situations = []struct {
	name string
	come func(w *sim)
}{
	{"starting", func(w *sim) {}},
	{"serving", func(w *sim) { w.to("ready") }},
	{"serving, an upgrade waits for the old process", func(w *sim) {
		w.m.parent = parentAlive
		w.to("ready")
		w.on(evUpgrade{w.request()})
	}},
	{"serving, an upgrade waits for the old process, which has finished", func(w *sim) {
		w.m.parent = parentAlive
		w.to("ready main")
		w.on(evUpgrade{w.request()})
	}},
	{"serving, the old process does not exit", func(w *sim) {
		w.m.parent = parentAlive
		w.to("ready main parentStuck")
	}},
	{"serving, the child has given up", func(w *sim) { w.to("ready upgrade launch line claims accept"); w.childStop(true) }},
	{"upgrading, launching", func(w *sim) { w.to("ready upgrade") }},
	{"upgrading, preparing", func(w *sim) { w.to("ready upgrade launch") }},
	{"upgrading, going", func(w *sim) { w.to("ready upgrade launch line claims") }},
	{"upgrading, the child was killed", func(w *sim) {
		w.to("ready upgrade launch")
		w.on(evLate{id: w.m.child.id})
	}},
	{"standing by", func(w *sim) { w.to("ready upgrade launch line claims accept") }},
	{"standing by, asked", func(w *sim) { w.to("ready upgrade launch line claims accept probation") }},
	{"lame duck", func(w *sim) {
		w.m.limits.lame = time.Second
		w.to("ready stop")
	}},
	{"serving, to be a lame duck", func(w *sim) {
		w.m.limits.lame = time.Second
		w.to("ready")
	}},
	{"upgrading, to be a lame duck", func(w *sim) {
		w.m.limits.lame = time.Second
		w.to("ready upgrade launch")
	}},
	{"draining", func(w *sim) { w.to("ready upgrade launch line claims accept probation pong") }},
	{"draining, to linger", func(w *sim) {
		w.mayLinger()
		w.to("ready upgrade launch line claims accept probation pong")
	}},
	{"draining, to linger, asked", func(w *sim) {
		w.mayLinger()
		w.to("ready upgrade launch line claims accept probation pong settled leashMade")
	}},
	{"lingering", func(w *sim) { w.beginLingering() }},
	{"lingering, since a moment", func(w *sim) {
		w.mayLinger()
		w.to("ready upgrade launch line claims accept probation pong settled leashMade pong")
	}},
	{"lingering, told to end", func(w *sim) {
		w.beginLingering()
		w.to("leash")
	}},
	{"lingering, the child is gone", func(w *sim) {
		w.beginLingering()
		w.to("exit")
	}},
	{"serving, the parent lingers", func(w *sim) {
		w.mayLinger()
		w.m.parent, w.m.parentPid = parentAlive, 6
		w.to("ready parentLingers")
	}},
	{"serving, an upgrade waits for one that lingers", func(w *sim) {
		w.m.parent, w.m.parentPid = parentAlive, 6
		w.to("ready parentLingers")
		w.on(evUpgrade{w.request()})
	}},
	{"serving, an upgrade waits for one that was told to end", func(w *sim) {
		w.m.parent, w.m.parentPid = parentAlive, 6
		w.to("ready parentLingers parentGone")
		w.on(evUpgrade{w.request()})
	}},
	{"draining, over", func(w *sim) { w.to("ready upgrade launch line claims accept probation pong drained") }},
	{"draining, told to stop", func(w *sim) { w.to("ready stop") }},
	{"draining, told to stop by the program", func(w *sim) { w.to("ready shutdown") }},
	{"draining, given up", func(w *sim) { w.to("ready leave") }},
	{"draining, the program wants the end of this process alone", func(w *sim) {
		w.to("ready upgrade launch line claims accept probation pong shutdownLate")
	}},
	{"draining, child told as well", func(w *sim) { w.to("ready upgrade launch line claims accept stop") }},
	{"draining, launching", func(w *sim) { w.to("ready upgrade stop") }},
	{"draining, for a child that starts", func(w *sim) { w.to("ready upgrade launch leave") }},
	{"resuming", func(w *sim) { w.to("ready upgrade launch line claims accept probation pong exit") }},
	{"resuming, told to stop, to be a lame duck", func(w *sim) {
		w.m.limits.lame = time.Second
		w.to("ready upgrade launch line claims accept probation pong exit drained stop")
	}},
	{"resuming, told to stop", func(w *sim) { w.to("ready upgrade launch line claims accept probation pong exit stop") }},
	{"holding, launching", func(w *sim) { w.to("ready upgrade stop drained") }},
	{"holding, for systemd", func(w *sim) {
		w.systemd = true
		w.to("ready upgrade launch line claims accept stop drained")
	}},
	{"holding, for one that lingers", func(w *sim) {
		w.m.parent, w.m.parentPid = parentAlive, 6
		w.to("ready parentLingers stop drained")
	}},
	{"stopped", func(w *sim) { w.to("ready stop drained") }},
	{"stopped, child serves", func(w *sim) {
		w.to("ready upgrade launch line claims accept probation pong drained pong finished")
	}},
	{"stopped, after it lingered", func(w *sim) {
		w.beginLingering()
		w.to("drained finished")
	}},
	{"exclusive, serving", func(w *sim) { w.excl("ready") }},
	{"exclusive, upgrading, the child does not wait for it", func(w *sim) { w.excl("ready upgrade launch line claims") }},
	{"exclusive, releasing", func(w *sim) { w.excl("ready upgrade launch line claimsExclusive") }},
	{"exclusive, releasing, the child was killed", func(w *sim) { w.excl("ready upgrade launch line claimsExclusive pauseLate") }},
	{"exclusive, releasing, finished", func(w *sim) { w.excl("ready upgrade launch line claimsExclusive drained") }},
	{"exclusive, releasing, going", func(w *sim) { w.excl("ready upgrade launch line claimsExclusive drained released") }},
	{"exclusive, releasing, going, told to stop", func(w *sim) {
		w.excl("ready upgrade launch line claimsExclusive drained released stop")
	}},
	{"exclusive, standing by", func(w *sim) { w.excl("ready upgrade launch line claimsExclusive drained released accept") }},
	{"exclusive, standing by, moved", func(w *sim) { w.excl("ready upgrade launch line claimsExclusive drained released accept moved") }},
	{"exclusive, draining", func(w *sim) {
		w.excl("ready upgrade launch line claimsExclusive drained released accept moved probation pong")
	}},
	{"exclusive, acquiring, release runs", func(w *sim) { w.excl("ready upgrade launch line claimsExclusive drained exit") }},
	{"exclusive, acquiring", func(w *sim) { w.excl("ready upgrade launch line claimsExclusive drained released exit") }},
	{"exclusive, acquiring, a drain was called off", func(w *sim) {
		w.excl("ready upgrade launch line claimsExclusive drained released accept moved probation pong exit")
	}},
	{"exclusive, acquiring, the child gives up", func(w *sim) {
		w.excl("ready upgrade launch line claimsExclusive drained released accept childLeaves")
	}},
	{"exclusive, draining, for a child that waits for it", func(w *sim) {
		w.excl("ready upgrade launch leave line claimsExclusive")
	}},
	{"exclusive, draining, not to linger: the child does not wait for it", func(w *sim) {
		w.mayLinger()
		w.excl("ready upgrade launch line claims accept probation pong")
	}},
	{"exclusive, draining, to linger", func(w *sim) {
		w.mayLinger()
		w.excl("ready upgrade launch line claimsExclusive drained released accept moved probation pong settled")
	}},
	{"exclusive, standing by, moving, probation is over, a stop was postponed", func(w *sim) {
		w.mayLinger()
		w.excl("ready upgrade launch line claimsExclusive drained released accept stop probation pong")
	}},
	{"exclusive, lingering", func(w *sim) {
		w.mayLinger()
		w.excl("ready upgrade launch line claimsExclusive drained released accept moved probation pong settled leashMade pong left")
	}},
	{"exclusive, releasing, the parent lingers", func(w *sim) { w.exclBesideLingering("") }},
	{"exclusive, acquiring, the parent lingers", func(w *sim) { w.exclBesideLingering("drained released exit") }},
}

func (w *sim) exclBesideLingering(names string) {
	w.mayLinger()
	w.m.parent, w.m.parentPid = parentAlive, 6
	w.excl("ready parentLingers upgrade launch line claimsExclusive " + names)
}

func (w *sim) mayLinger() { w.wants, w.m.limits.processes = true, 1 }

func (w *sim) beginLingering() {
	w.mayLinger()
	w.to("ready upgrade launch line claims accept probation pong settled leashMade pong left")
}

// excl is to, in a process with exclusive state.
func (w *sim) excl(names string) {
	w.exclusive, w.m.exclusive = true, true
	w.to(names)
}

func (w *sim) childStop(leave bool) {
	w.on(evChildStop{id: w.m.child.id, at: w.m.now(), leave: leave})
}

// kinds are the events.
var kinds = []struct {
	name  string
	event func(w *sim) event
}{
	{"ready", func(w *sim) event { return evReady{make(reply, 1)} }},
	{"upgrade", func(w *sim) event { return evUpgrade{make(reply, 1)} }},
	{"signal", func(w *sim) event { return evSignal{"user defined signal 2", w.m.now()} }},
	{"stop", func(w *sim) event { return evStop{stopRequest{signal: syscall.SIGTERM}} }},
	{"stopLate", func(w *sim) event {
		return evStop{stopRequest{signal: syscall.SIGTERM, at: w.m.now().Add(time.Minute)}}
	}},
	{"shutdown", func(w *sim) event { return evStop{} }},
	{"shutdownLate", func(w *sim) event { return evStop{stopRequest{at: w.m.now().Add(time.Minute)}} }},
	{"close", func(w *sim) event { return evStop{stopRequest{now: true}} }},
	{"closeLate", func(w *sim) event { return evStop{stopRequest{now: true, at: w.m.now().Add(time.Minute)}} }},
	{"leave", func(w *sim) event { return evStop{stopRequest{leave: true}} }},
	{"stopPassedOn", func(w *sim) event { return evStop{stopRequest{passedOn: true}} }},
	{"parentGone", func(w *sim) event { return evParentGone{} }},
	{"parentStuck", func(w *sim) event { return evParentStuck{} }},
	{"parentLingers", func(w *sim) event { return evParentLingers{} }},
	{"watched", func(w *sim) event { return evWatched{6} }},
	{"lingererGone", func(w *sim) event { return evLingererGone{6} }},
	{"lingererStuck", func(w *sim) event { return evLingererStuck{6} }},
	{"settled", func(w *sim) event { return evSettled{w.m.child.id} }},
	{"leashMade", func(w *sim) event { return evLeashMade{id: w.m.child.id} }},
	{"noLeash", func(w *sim) event { return evLeashMade{w.m.child.id, errors.New("EMFILE")} }},
	{"left", func(w *sim) event { return evLeft{} }},
	{"leash", func(w *sim) event { return evLeash{} }},
	{"leashNow", func(w *sim) event { return evLeash{now: true} }},
	{"leashGone", func(w *sim) event { return evLeash{gone: true} }},
	{"ping", func(w *sim) event { return evPing{} }},
	{"main", func(w *sim) event { return evMain{} }},
	{"masterAsked", func(w *sim) event { return evMasterAsked{} }},
	{"masterLate", func(w *sim) event { return evMasterLate{} }},
	{"masterGone", func(w *sim) event { return evMasterGone{} }},
	{"launch", func(w *sim) event { return evLaunched{pid: 7} }},
	{"launchFailed", func(w *sim) event { return evLaunched{err: errors.New("no such file")} }},
	{"line", func(w *sim) event { return evLine{id: w.m.child.id, line: readyLine} }},
	{"otherLine", func(w *sim) event { return evLine{id: w.m.child.id, line: "hello\n"} }},
	{"noLine", func(w *sim) event { return evLine{id: w.m.child.id, err: errors.New("EOF")} }},
	{"claims", func(w *sim) event { return evClaims{id: w.m.child.id, pongs: true, keeps: w.wants} }},
	{"claimsExclusive", func(w *sim) event { return evClaims{id: w.m.child.id, pongs: true, keeps: w.wants, exclusive: true} }},
	{"pauseLate", func(w *sim) event { return evPauseLate{w.m.child.id} }},
	{"moved", func(w *sim) event { return evMoved{w.m.child.id} }},
	{"released", func(w *sim) event { return evReleased{} }},
	{"releaseFailed", func(w *sim) event { return evReleased{errors.New("disk full")} }},
	{"acquired", func(w *sim) event { return evAcquired{} }},
	{"acquireFailed", func(w *sim) event { return evAcquired{errors.New("locked")} }},
	{"badClaims", func(w *sim) event { return evClaims{id: w.m.child.id, err: errors.New("nonsense")} }},
	{"accept", func(w *sim) event { return evAccepting{w.m.child.id, w.m.now()} }},
	{"takes", func(w *sim) event { return evTakes{w.m.child.id} }},
	{"failed", func(w *sim) event { return evFailed{w.m.child.id, errors.New("why")} }},
	{"childStops", func(w *sim) event { return evChildStop{id: w.m.child.id, at: w.m.now()} }},
	{"childLeaves", func(w *sim) event { return evChildStop{id: w.m.child.id, at: w.m.now(), leave: true} }},
	{"childStopsEarly", func(w *sim) event { return evChildStop{id: w.m.child.id, at: w.m.now(), early: true} }},
	{"handedOver", func(w *sim) event { return evHandedOver{id: w.m.child.id} }},
	{"pong", func(w *sim) event { return evPong{w.m.child.id} }},
	{"unasked", func(w *sim) event { return evUnasked{w.m.child.id, errors.New("ENOBUFS")} }},
	{"stuck", func(w *sim) event { return evStuck{w.m.child.id, errors.New("full")} }},
	{"deaf", func(w *sim) event { return evDeaf{id: w.m.child.id, err: errors.New("EOF")} }},
	{"deafOurs", func(w *sim) event { return evDeaf{w.m.child.id, errors.New("ENOMEM"), true} }},
	{"exit", func(w *sim) event {
		return evExit{id: w.m.child.id, failure: &UpgradeError{Pid: 7}, killed: w.m.child.killReason != nil}
	}},
	{"late", func(w *sim) event { return evLate{id: w.m.child.id} }},
	{"lateAtGo", func(w *sim) event { return evLate{id: w.m.child.id, went: true} }},
	{"hungUp", func(w *sim) event { return evHungUp{w.m.child.id, errors.New("EOF")} }},
	{"leftLongAgo", func(w *sim) event { return evGone{w.m.child.id} }},
	{"probation", func(w *sim) event { return evProbationOver{id: w.m.child.id} }},
	{"sick", func(w *sim) event { return evProbationOver{w.m.child.id, errors.New("why")} }},
	{"checkUp", func(w *sim) event { return evCheckUp{w.m.child.id} }},
	{"silence", func(w *sim) event { return evSilence{w.m.child.id, w.m.child.answered, 1} }},
	{"killAgain", func(w *sim) event { return evKillAgain{id: w.m.child.id} }},
	{"lameOver", func(w *sim) event { return evLameOver{} }},
	{"drained", func(w *sim) event { return evDrained{} }},
	{"resumed", func(w *sim) event { return evResumed{} }},
	{"restored", func(w *sim) event { return evRestored{} }},
	{"finished", func(w *sim) event { return evFinished{} }},
}

// to gives the machine events by their names.
func (w *sim) to(names string) {
	for _, name := range strings.Fields(names) {
		i := slices.IndexFunc(kinds, func(k struct {
			name  string
			event func(w *sim) event
		}) bool {
			return k.name == name
		})
		w.on(kinds[i].event(w))
	}
}

// Each state and each event: testdata/machine.txt has what comes of it. The events at the
// end of each state can't happen there, or are too late, and change nothing.
func TestMachineTable(t *testing.T) {
	var b strings.Builder
	states, stages, events := map[string]bool{}, map[string]bool{}, map[string]bool{}
	for _, s := range situations {
		fmt.Fprintf(&b, "%s\n", s.name)
		var nothing []string
		for _, k := range kinds {
			w := newSim(false, false, false)
			s.come(w)
			if len(w.broken) > 0 {
				t.Fatalf("%s: %v", s.name, w.broken)
			}
			states[w.m.state.String()], stages[w.m.child.stage.String()] = true, true
			before, e := fmt.Sprintf("%+v", *w.m), k.event(w)
			events[strings.TrimPrefix(fmt.Sprintf("%T", e), "grace.")] = true
			w.on(e)
			did := strings.Join(w.did, ", ")
			switch {
			case len(w.broken) > 0:
				did += " BROKEN: " + strings.Join(w.broken, "; ")
			case did != "":
			case fmt.Sprintf("%+v", *w.m) == before:
				nothing = append(nothing, k.name)
				continue
			default:
				did = "noted"
			}
			child := ""
			if w.m.child.stage != noChild {
				child = ", " + w.m.child.stage.String()
			}
			fmt.Fprintf(&b, "\t%-16s%v%s: %s\n", k.name, w.m.state, child, did)
		}
		fmt.Fprintf(&b, "\timpossible, or too late: %s\n", strings.Join(nothing, ", "))
	}
	for s := starting; s <= stopped; s++ {
		if !states[s.String()] {
			t.Errorf("no situation has the state %v", s)
		}
	}
	for s := noChild; s <= leaving; s++ {
		if !stages[s.String()] {
			t.Errorf("no situation has the child %v", s)
		}
	}
	code, err := os.ReadFile("machine.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`(?m)^\t(ev[A-Z]\w*)\s+struct`).FindAllSubmatch(code, -1) {
		if kind := string(m[1]); !events[kind] {
			t.Errorf("no event of the table is a %s", kind)
		}
	}
	if len(events) < 40 {
		t.Errorf("%d kinds of events: is machine.go read as it is written?", len(events))
	}
	path := "testdata/machine.txt"
	if *update {
		os.MkdirAll("testdata", 0o755)
		if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(want) != b.String() {
		t.Errorf("what comes of an event has changed; look at the difference after go test -run TestMachineTable -update")
	}
}
