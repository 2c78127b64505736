//go:build unix

package grace

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/serve"
	"github.com/julofinance/grace/v3/internal/sockets"
)

func TestSameSignalCountsOnce(t *testing.T) {
	type arrival struct {
		name   string
		after  time.Duration
		counts bool
	}
	const late = sameSignal + time.Millisecond
	for name, arrivals := range map[string][]arrival{
		"twice":                          {{"term", 0, true}, {"term", sameSignal - 1, false}},
		"again later":                    {{"term", 0, true}, {"term", late, true}},
		"what did not count is no start": {{"term", 0, true}, {"term", sameSignal / 2, false}, {"term", late, true}, {"term", late + 1, false}},
		"another signal":                 {{"term", 0, true}, {"int", 1, true}, {"term", 2, false}, {"int", 3, false}},
		"passed on, then sent":           {{fromPeer, 0, true}, {"term", 1, false}, {"int", 2, false}, {"term", late, true}},
		"sent, then passed on":           {{"term", 0, true}, {fromPeer, 1, false}, {fromPeer, late, true}},
		"passed on twice":                {{fromPeer, 0, true}, {fromPeer, 1, true}},
		"seen in the wrong order":        {{"term", 10, true}, {fromPeer, 0, false}},
	} {
		t.Run(name, func(t *testing.T) {
			var r repeats
			begin := time.Now()
			for i, a := range arrivals {
				if got := !r.again(a.name, begin.Add(a.after)); got != a.counts {
					t.Errorf("arrival %d, %q after %v, counts: %v; want %v", i, a.name, a.after, got, a.counts)
				}
			}
		})
	}
}

// A stubborn server has a request that does not end by itself.
type stubborn struct {
	draining chan *serve.Drain
	end      chan struct{}
}

func (s *stubborn) Drain(d *serve.Drain) serve.Report {
	s.draining <- d
	select {
	case <-d.TimeUp():
	case <-s.end:
	}
	return serve.Report{}
}

func (s *stubborn) Offer(*sockets.Mover) {}
func (s *stubborn) Resume()              {}
func (s *stubborn) End()                 {}

func (s *stubborn) mustDrain(t *testing.T, name string) *serve.Drain {
	t.Helper()
	return receive(t, s.draining, "the drain of "+name)
}

func mustBeCut(t *testing.T, d *serve.Drain, name string, want bool) {
	t.Helper()
	if want {
		receive(t, d.TimeUp(), "the cut of "+name)
		return
	}
	select {
	case <-d.TimeUp():
		t.Errorf("the drain of %s was cut off", name)
	default:
	}
}

// stopHouse has generations whose drain does not end by itself.
func stopHouse(t *testing.T) (*house, chan *stubborn) {
	servers := make(chan *stubborn, 9)
	h := newHouse(t, func(g *generation) error {
		s := &stubborn{make(chan *serve.Drain, 9), make(chan struct{})}
		g.Upgrader.host.Add(s)
		servers <- s
		return g.Ready()
	})
	return h, servers
}

// signalled is what the signal handler does, at a time of the test's choice.
func (g *generation) signalled(at time.Time) {
	g.ask(func() { g.m.onStop(stopRequest{signal: syscall.SIGTERM, at: at}) })
}

// ask calls f in the goroutine that owns the state, and waits for it.
func (g *generation) ask(f func()) {
	done := make(chan struct{})
	g.post(func() { f(); close(done) })
	receive(g.house.t, done, "the goroutine that owns the state")
}

// toldToStop waits until it was told that the service is to end, and says when
// it heard that from the other process.
func (g *generation) toldToStop() (at time.Time) {
	g.house.t.Helper()
	until(g.house.t, fmt.Sprintf("generation %d to be told to stop", g.n), func() (told bool) {
		g.ask(func() { told, at = g.m.stop != notStopping, g.m.stops.counted[fromPeer] })
		return told
	})
	return at
}

// A handOver is two generations after it.
type handOver struct {
	old, new             *generation
	oldServer, newServer *stubborn
}

// handsOver makes one whose old process is in that state.
func handsOver(t *testing.T, want state) *handOver {
	h, servers := stopHouse(t)
	h.opts = func(int) []Option {
		if want == draining {
			return []Option{Probation(0), DrainTimeout(time.Hour)} // no drain is cut off by its time
		}
		return []Option{Probation(time.Hour), DrainTimeout(time.Hour)}
	}
	p := &handOver{old: h.first()}
	p.oldServer = <-servers
	p.old.upgrade()
	p.new = h.next()
	p.newServer = <-servers
	p.old.await(want)
	return p
}

// TestStopOfBoth: TERM to the process group of a hand-over reaches both, and
// each passes it on to the other. It drains both, and cuts nothing off; a second
// one does.
func TestStopOfBoth(t *testing.T) {
	for _, moment := range []state{standingBy, draining} {
		for _, order := range []string{"old first", "new first", "at once"} {
			t.Run(moment.String()+", "+order, func(t *testing.T) {
				p := handsOver(t, moment)
				first, second := p.old, p.new
				if order == "new first" {
					first, second = p.new, p.old
				}
				at := time.Now()
				first.signalled(at)
				if order != "at once" {
					at = second.toldToStop()
				}
				second.signalled(at)
				first.toldToStop()
				second.toldToStop()
				oldDrain, newDrain := p.oldServer.mustDrain(t, "the old process"), p.newServer.mustDrain(t, "the new process")
				mustBeCut(t, oldDrain, "the old process", false)
				mustBeCut(t, newDrain, "the new process", false)

				if order == "at once" { // the new process may have said it first, or the old one
					p.old.ask(func() { p.old.m.child.orderly = true })
				}
				first.signalled(time.Now().Add(2 * sameSignal))
				mustBeCut(t, oldDrain, "the old process", true)
				mustBeCut(t, newDrain, "the new process", true)
				receive(t, p.old.Done(), "Done of the old process")
				receive(t, p.new.Done(), "Done of the new process")
			})
		}
	}
}

// handedOverLongAgo sets the time of the hand-over back by that much.
func (p *handOver) handedOverLongAgo(ago time.Duration) {
	p.old.ask(func() { p.old.m.child.since = time.Now().Add(-ago) })
}

// TestLateStop: a signal to the old process long after the hand-over ends that process
// alone, and cuts off nothing before it comes again.
func TestLateStop(t *testing.T) {
	for _, moment := range []state{standingBy, draining} {
		t.Run(moment.String(), func(t *testing.T) {
			p := handsOver(t, moment)
			p.handedOverLongAgo(2 * passOnFor)
			at := time.Now()
			p.old.signalled(at)
			oldDrain := p.oldServer.mustDrain(t, "the old process")
			mustBeCut(t, oldDrain, "the old process", false)
			p.old.signalled(at.Add(2 * sameSignal))
			mustBeCut(t, oldDrain, "the old process", true)
			receive(t, p.old.Done(), "Done of the old process")
			p.new.await(serving)
			p.new.ask(func() {
				if p.new.m.stop != notStopping || len(p.new.m.stops.counted) > 0 {
					t.Error("the new process was told to stop")
				}
			})
		})
	}
}

// TestLateStopOfBoth: it was one of the whole service after all. The old process hears
// that from the new one, and drains on.
func TestLateStopOfBoth(t *testing.T) {
	for _, order := range []string{"old first", "new first"} {
		t.Run(order, func(t *testing.T) {
			p := handsOver(t, draining)
			p.handedOverLongAgo(2 * passOnFor)
			at := time.Now()
			if order == "old first" {
				p.old.signalled(at)
				p.new.signalled(at)
				p.old.toldToStop()
			} else {
				p.new.signalled(at)
				p.old.signalled(p.old.toldToStop())
			}
			oldDrain, newDrain := p.oldServer.mustDrain(t, "the old process"), p.newServer.mustDrain(t, "the new process")
			p.old.ask(func() {})
			mustBeCut(t, oldDrain, "the old process", false)
			mustBeCut(t, newDrain, "the new process", false)
			close(p.oldServer.end)
			close(p.newServer.end)
			receive(t, p.old.Done(), "Done of the old process")
			receive(t, p.new.Done(), "Done of the new process")
		})
	}
}

// TestStopWhereOnlyTheFirstPidIsKnown: a supervisor that takes the first process
// for the service stops the service by it, however long ago it handed over.
func TestStopWhereOnlyTheFirstPidIsKnown(t *testing.T) {
	for name, s := range map[string]starter{"supervisord": {supervisord: true}, "systemd": {systemd: true}} {
		t.Run(name, func(t *testing.T) {
			p := handsOver(t, draining)
			p.handedOverLongAgo(2 * passOnFor)
			p.old.ask(func() { p.old.sys.starter = s })
			p.old.signalled(time.Now())
			p.new.toldToStop()
			close(p.oldServer.end)
			close(p.newServer.end)
			receive(t, p.old.Done(), "Done of the old process")
			receive(t, p.new.Done(), "Done of the new process")
		})
	}
}

// TestUpgradeSignalTwice: one signal to the process group, and once more by a
// script in it, is one upgrade; later it is another one.
func TestUpgradeSignalTwice(t *testing.T) {
	h := newHouse(t, func(g *generation) error { return g.Ready() })
	h.opts = func(int) []Option { return []Option{Probation(time.Hour)} }
	g := h.first()
	begin := time.Now()
	wanted := func() (wants bool) {
		g.ask(func() { wants = g.m.has(wanted) || g.m.has(handedOn) })
		return wants
	}
	g.ask(func() {
		g.m.onSignal(evSignal{"usr2", begin})
		g.m.onSignal(evSignal{"usr2", begin.Add(sameSignal - 1)})
		g.m.onSignal(evSignal{fromPeer, begin.Add(sameSignal - 1)})
	})
	if wanted() {
		t.Error("a second upgrade is wanted after one signal that came several times")
	}
	h.next()
	g.ask(func() { g.m.onSignal(evSignal{"usr2", begin.Add(sameSignal)}) })
	if !wanted() {
		t.Error("no second upgrade is wanted after a second signal")
	}
}

// TestStopOnTheWayOut: a program that stops its Upgrader again when its servers
// have returned, or after Done, does not stop the new process by that.
func TestStopOnTheWayOut(t *testing.T) {
	h, servers := stopHouse(t)
	h.opts = func(int) []Option { return []Option{Probation(0)} }
	ready := h.main
	h.main = func(g *generation) error {
		if err := ready(g); err != nil || g.n > 1 {
			return err
		}
		g.host.Add(&stopper{g})
		g.house.born <- g
		<-g.Done()
		g.askStop()
		return nil
	}
	old := h.first()
	old.upgrade()
	close((<-servers).end)
	receive(t, old.Done(), "Done of the old process")
	next := h.next()
	for next.n == 1 { // its main has returned
		next = h.next()
	}
	receive(t, next.parent.gone, "the end of the old process")
	next.ask(func() {
		if next.m.stop != notStopping {
			t.Error("the new process was told to stop")
		}
	})
}

// A stopper is a server whose Serve, when it has returned, is followed by Shutdown.
type stopper struct{ g *generation }

func (s *stopper) Drain(*serve.Drain) serve.Report { return serve.Report{} }
func (s *stopper) Offer(*sockets.Mover)            {}
func (s *stopper) Resume()                         {}
func (s *stopper) End()                            { s.g.askStop() }

// TestStopOfNewThatHasGivenUp: a signal to a new process that was rolled back long
// ago ends that one, and not the service. One of a moment later was meant for the
// service: the PID file had named it.
func TestStopOfNewThatHasGivenUp(t *testing.T) {
	for name, long := range map[string]bool{"a moment ago": false, "long ago": true} {
		t.Run(name, func(t *testing.T) {
			p := handsOver(t, standingBy)
			p.new.Abort()
			p.old.await(serving)
			if long {
				p.handedOverLongAgo(2 * passOnFor)
			}
			newDrain := p.newServer.mustDrain(t, "the new process")
			at := time.Now()
			p.new.signalled(at)
			mustBeCut(t, newDrain, "the new process", false) // it is the first
			p.new.signalled(at.Add(sameSignal))
			mustBeCut(t, newDrain, "the new process", true)
			receive(t, p.new.Done(), "Done of the new process")
			if !long {
				receive(t, p.old.Done(), "Done of the old process")
				return
			}
			until(t, "the end of the new process", func() (gone bool) {
				p.old.ask(func() { gone = p.old.child == nil })
				return gone
			})
			p.old.ask(func() {
				if p.old.m.stop != notStopping || p.old.m.state != serving {
					t.Errorf("the old process is %v, told to stop: %v; want it to serve on", p.old.m.state, p.old.m.stop != notStopping)
				}
			})
		})
	}
}
