package grace

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// A sim is what a machine lives in: the sockets, the child, and what is under
// way. It does what the machine says, and checks at each event what must always hold.
type sim struct {
	m   *machine
	log []string // what has happened, for a failure's message
	did []string // the effects of the last event

	open       bool // the gates
	wasReady   bool
	childLives bool
	unkillable bool
	launches   int
	timers     []event
	pending    map[string]int // launch, drain, resume, restore, finish, master
	replies    []reply
	waiting    []reply // of these, those of the upgrade under way when the event came
	doneClosed bool
	broken     []string
	ends       bool // the program has asked for the end
	wants      bool // this process is to linger
	systemd    bool
	service    bool // a supervisor takes this process for the service

	exclusive    bool // there is exclusive state
	mine, theirs bool // which process has it
	lost         bool
}

func newSim(hasParent, underMaster, systemd bool) *sim {
	w := &sim{pending: map[string]int{}, systemd: systemd}
	clock := time.Unix(1, 0)
	w.m = &machine{
		do: w, now: func() time.Time { clock = clock.Add(time.Second); return clock },
		supported: true, underMaster: underMaster,
		limits: limits{ready: time.Second, probation: time.Second, drain: time.Second, pong: time.Second},
	}
	if hasParent {
		w.m.parent = parentAlive
	}
	return w
}

func (w *sim) effect(format string, args ...any) {
	w.did = append(w.did, fmt.Sprintf(format, args...))
}

func (w *sim) breaks(format string, args ...any) {
	w.broken = append(w.broken, fmt.Sprintf(format, args...))
}

func (w *sim) openGates() error {
	w.effect("open gates")
	w.open, w.wasReady, w.mine = true, true, w.exclusive
	return nil
}
func (w *sim) closeGates() { w.effect("close gates"); w.open = false }
func (w *sim) reopenGates() {
	w.effect("reopen gates")
	w.open = true
}
func (w *sim) mend()         { w.effect("mend") }
func (w *sim) stopMoves()    { w.effect("stop moves") }
func (w *sim) leaveToChild() { w.effect("leave to child"); w.open = false }
func (w *sim) offer()        { w.effect("offer") }
func (w *sim) letGo()        { w.effect("let go") }
func (w *sim) disown()       { w.effect("disown") }
func (w *sim) launch(int) {
	w.effect("launch")
	if w.childLives || w.pending["launch"] > 0 {
		w.breaks("a child is started while another one lives")
	}
	w.pending["launch"]++
	w.launches++
}

// send is what is sent to the child.
func (w *sim) send(what string) {
	w.effect("send %s", what)
	if w.m.child.stage <= launching {
		w.breaks("%s is sent to a child that is not there", what)
	}
}
func (w *sim) sendGo() {
	w.send("go")
	if w.exclusive && w.m.child.exclusive {
		w.theirs = true
		if w.mine || w.pending["release"] > 0 {
			w.breaks("the child may acquire what this process has")
		}
	}
}
func (w *sim) sendUpgrade()             { w.send("upgrade") }
func (w *sim) sendStop(now bool)        { w.send(fmt.Sprintf("stop %v", now)) }
func (w *sim) ping()                    { w.send("ping") }
func (w *sim) examine(d time.Duration)  { w.after(d, evProbationOver{id: w.m.child.id}) }
func (w *sim) tellParentOfChild(b bool) { w.effect("tell parent: child serves %v", b) }
func (w *sim) sendParentStop(now bool)  { w.effect("tell parent: stop %v", now) }
func (w *sim) tellWatched(pid int)      { w.effect("tell the other: %d watched", pid) }
func (w *sim) sendParentLeave()         { w.effect("tell parent: leave") }
func (w *sim) sendPong()                { w.effect("tell parent: well") }
func (w *sim) becomeMain()              { w.effect("become main") }
func (w *sim) kill() error {
	w.effect("kill")
	if w.unkillable {
		return errors.New("EPERM")
	}
	return nil
}
func (w *sim) forget() { w.effect("forget") }
func (w *sim) askMaster([]reply) {
	w.effect("ask master")
	w.pending["master"]++
}
func (w *sim) restore(r []reply, n notice, err error) {
	w.effect("restore")
	w.pending["restore"]++
	tell(r, err)
}
func (w *sim) beginDrain(move bool) {
	w.effect("drain")
	w.open = false
	for _, r := range w.waiting {
		if len(r) > 0 {
			err := <-r
			r <- err
			if err == nil {
				w.breaks("the caller of Upgrade hears that it has succeeded, and this process does not drain yet")
			}
		}
	}
	if w.pending["drain"]+w.pending["resume"] > 0 {
		w.breaks("two drains at once")
	}
	w.pending["drain"]++
}
func (w *sim) goLame() {
	w.effect("go lame")
	w.pending["lame"]++
}
func (w *sim) hurryDrain()  { w.effect("hurry") }
func (w *sim) cancelDrain() { w.effect("cancel drain") }
func (w *sim) resume() {
	w.effect("resume")
	w.pending["resume"]++
}
func (w *sim) stopping(bool) { w.effect("stopping") }
func (w *sim) leaveEnd()     { w.effect("leave end") }
func (w *sim) finish(gave, last bool) {
	w.effect("finish")
	if w.pending["launch"] > 0 {
		w.breaks("it ends while a child may be started that is not known")
	}
	w.pending["finish"]++
}
func (w *sim) done()       { w.effect("done"); w.doneClosed = true }
func (w *sim) endSignals() { w.effect("end signals") }
func (w *sim) after(_ time.Duration, e event) {
	w.effect("later %s", strings.TrimPrefix(fmt.Sprintf("%T", e), "grace.ev"))
	w.timers = append(w.timers, e)
}
func (w *sim) say(n notice, _ error)           { w.effect("say %v", n) }
func (w *sim) sayStop(n notice, _ stopRequest) { w.effect("say %v", n) }
func (w *sim) isService() bool                 { return w.service }
func (w *sim) hasServiceManager() bool         { return w.systemd }

// on gives the machine an event, and looks at what must always hold.
func (w *sim) on(e event) {
	w.did, w.waiting = nil, w.m.callers(underWay)
	before := w.m.state
	what := ""
	switch e := e.(type) {
	case evLaunched:
		what = "launch"
		w.childLives = e.err == nil || w.childLives && w.pending[what] == 0
	case evExit:
		w.childLives, w.theirs = false, false
	case evLameOver:
		what = "lame"
	case evMoved:
		what = "moved"
	case evReleased:
		what = "release"
	case evAcquired:
		what = "acquire"
		w.mine = w.mine || e.err == nil && w.pending[what] > 0
	case evDrained:
		what = "drain"
	case evResumed:
		what = "resume"
	case evRestored:
		what = "restore"
	case evFinished:
		what = "finish"
	case evMasterAsked:
		what = "master"
	case evLeashMade:
		what = "leash"
	case evLeft:
		what = "leave"
	}
	if w.pending[what] > 0 {
		w.pending[what]--
	}
	urgent, killed, stop := w.m.hurried, w.m.child.killReason, w.m.stop
	w.m.on(e)
	if slices.Contains(w.did, "finish") && w.pending["leave"] > 0 {
		w.breaks("it ends, and is still telling others that the child is the service")
	}
	if killed != nil && w.m.child.killReason != nil && w.m.child.stage == accepting && w.m.stop == notStopping && (slices.Contains(w.did, "drain") || slices.Contains(w.did, "finish") || slices.Contains(w.did, "linger")) {
		w.breaks("this process leaves the service to a child that is being killed")
	}
	if w.m.moving && w.m.child.stage == accepting && slices.Contains(w.did, "drain") {
		w.breaks("it drains while what was held is on its way")
	}
	if killed != nil && w.m.child.killReason != nil && w.m.child.stage == accepting && stop == notStopping && slices.Contains(w.did, "stopping") && !w.open {
		w.breaks("it stops with its gates shut, and the child is being killed")
	}
	if said := slices.Index(w.did, fmt.Sprint("say ", noticeStopBegins)); stop == notStopping && said >= 0 && !slices.Contains(w.did[:said], "stopping") {
		w.breaks("it is said that this process stops, and it may still become ready")
	}
	if told := slices.Contains(w.did, "say sick"); told != (w.m.child.killReason == ErrUnhealthy && killed == nil) {
		w.breaks("it was said that the child is sick: %v; it is killed for the reason %v, and was before for %v", told, w.m.child.killReason, killed)
	}
	if stop, ok := e.(evStop); ok && !stop.byOperator() && !stop.passedOn {
		w.ends = w.ends || !stop.leave
		if !stop.now && !urgent && slices.Contains(w.did, "hurry") {
			w.breaks("the program asks for a soft stop, and what is left is cut off")
		}
	}
	w.log = append(w.log, fmt.Sprintf("%-10v %-9v %s %+v -> %v, %v, %v: %s", before, w.m.child.stage, strings.TrimPrefix(fmt.Sprintf("%T", e), "grace."), e, w.m.state, w.m.child.stage, w.m.drain, strings.Join(w.did, ", ")))
	m := w.m
	if w.exclusive && w.open && !w.mine {
		w.breaks("it accepts without the exclusive state")
	}
	if m.has(wanted) && m.inTheWay() == "" {
		w.breaks("an upgrade that is wanted does not begin")
	}
	if m.restoring < 0 || m.restoring > 0 && w.pending["restore"] == 0 {
		w.breaks("restoring is %d", m.restoring)
	}
	if m.state == lameDuck && (!w.open || m.stop != stopService || m.child.accepted() && m.child.stage != leaving) {
		w.breaks("a lame duck, the gates are open: %v, the stop is %v, the child is %v", w.open, m.stop, m.child.stage)
	}
	if !w.wasReady || m.stop != notStopping || m.state == stopped {
		if m.state == serving && m.stop != notStopping {
			w.breaks("serves, and was told to stop")
		}
		return
	}
	switch m.state {
	case releasing, acquiring:
		if w.open {
			w.breaks("the state is %v, and the gates are open", m.state)
		}
		if m.state == acquiring && !w.childLives && w.pending["release"]+w.pending["acquire"] == 0 {
			w.breaks("the state is to be had back, and nothing is under way")
		}
	case serving, upgrading, resuming:
		if !w.open {
			w.breaks("the state is %v, and the gates are shut", m.state)
		}
	case standingBy, draining:
		if m.child.stage != accepting {
			w.breaks("the state is %v, and the child is %v: no process accepts", m.state, m.child.stage)
		}
	}
	if (m.state == lingering) != (m.lingers == lingered) && m.state < holding {
		w.breaks("the state is %v, and it is %v on its way to lingering", m.state, m.lingers)
	}
	if len(m.lingerers) > m.limits.processes && m.parent != parentAlive && m.parent != parentFinished && m.state == serving && !m.lingerers[0].told {
		w.breaks("%d processes linger, %d may, and the oldest was not told to end", len(m.lingerers), m.limits.processes)
	}
	if m.drain == running && (m.state == standingBy || m.state == serving || m.state == upgrading) {
		w.breaks("the state is %v, and a drain is %v", m.state, m.drain)
	}
	if m.drain != noDrain && m.state < releasing {
		w.breaks("the state is %v, and a drain is %v", m.state, m.drain)
	}
}

// complete ends something that is under way, if it is.
func (w *sim) complete(what string) bool {
	if w.pending[what] == 0 {
		return false
	}
	switch what {
	case "launch":
		w.on(evLaunched{pid: 100 + w.launches})
	case "lame":
		w.on(evLameOver{})
	case "drain":
		w.on(evDrained{})
	case "resume":
		w.on(evResumed{})
	case "restore":
		w.on(evRestored{})
	case "finish":
		w.on(evFinished{})
	case "moved":
		w.on(evMoved{w.m.child.id})
	case "release":
		w.on(evReleased{})
	case "acquire":
		w.on(evAcquired{})
	case "master":
		w.on(evMasterAsked{replies: w.m.callers(atMaster)})
	case "leash":
		w.on(evLeashMade{id: w.m.child.id})
	case "leave":
		w.on(evLeft{})
	}
	return true
}

func (w *sim) failLaunch() {
	if w.pending["launch"] > 0 {
		w.on(evLaunched{err: errors.New("no such file")})
	}
}

func (w *sim) request() reply {
	r := make(reply, 1)
	w.replies = append(w.replies, r)
	return r
}

func (w *sim) parentLives() bool { return w.m.parent != noParent && w.m.parent != parentGone }

func (w *sim) exit() {
	if w.childLives {
		w.on(evExit{id: w.m.child.id, failure: &UpgradeError{Pid: 1}, killed: w.m.child.killReason != nil})
	}
}

func (w *sim) sayRepeated(string) { w.effect("say repeated") }

// TestOldProcessThatDoesNotExit: an upgrade waits for it, and not for ever.
func TestOldProcessThatDoesNotExit(t *testing.T) {
	w := newSim(true, false, false)
	w.to("ready main")
	w.on(evUpgrade{w.request()})
	if w.m.state != serving || !w.m.has(wanted) {
		t.Errorf("the old process has just finished, and the state is %v; want that the upgrade waits", w.m.state)
	}
	w.to("parentStuck")
	if w.m.state != upgrading || !slices.Contains(w.did, "say parent stuck") {
		t.Errorf("the old process does not exit, the state is %v, and the effects are %q; want that the upgrade begins", w.m.state, w.did)
	}
	w.to("parentGone")
	if !slices.Contains(w.did, "say parent gone") {
		t.Errorf("the old process has exited after all, and the effects are %q", w.did)
	}
}

// callers gives those of the requests of this stage.
func (m *machine) callers(stage requestStage) (callers []reply) {
	for _, r := range m.requests {
		if r.stage == stage {
			callers = append(callers, r.reply)
		}
	}
	return callers
}
