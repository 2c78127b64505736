//go:build unix

package grace

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/proc"
	"github.com/julofinance/grace/v3/internal/serve"
	"github.com/julofinance/grace/v3/internal/testing/fdtest"
	"github.com/julofinance/grace/v3/internal/testing/wait"
	"golang.org/x/sys/unix"
)

// Whole upgrades in one process: a house starts its generations through the
// system struct, each with copies of the descriptors, as a fork would give them.

const limit = wait.Limit // of every wait

// A house is a line of generations.
type house struct {
	t    *testing.T
	main func(*generation) error // what each does after New; an error ends it
	opts func(n int) []Option
	// tamper may change what generation n is given.
	tamper func(n int, h *handover)
	// signals may stand for what handles signals.
	signals func(*Upgrader) (release func())

	mu   sync.Mutex
	last int
	born chan *generation // each, once its main has returned

	// unkillable: a kill fails.
	unkillable atomic.Bool
}

// A generation stands for a process.
type generation struct {
	*Upgrader
	house   *house
	n       int
	err     error // of New or of main
	made    chan struct{}
	ended   chan struct{}
	endOnce sync.Once
	death   atomic.Pointer[os.ProcessState] // how it ended, or is ending
	dying   chan struct{}                   // closed by SIGKILL
	dieOnce sync.Once
	given   *handover
}

func newHouse(t *testing.T, main func(*generation) error) *house {
	deaths() // takes its time, once
	h := &house{t: t, main: main, born: make(chan *generation, 100)}
	h.opts = func(int) []Option { return nil }
	return h
}

// first starts generation 1.
func (h *house) first() *generation {
	h.t.Helper()
	h.begin(system{})
	return h.next()
}

// next waits for the next generation that has come through its main.
func (h *house) next() *generation {
	h.t.Helper()
	return receive(h.t, h.born, "a generation to start")
}

func (h *house) begin(sys system) *generation {
	h.mu.Lock()
	h.last++
	n := h.last
	h.mu.Unlock()
	g := &generation{house: h, n: n, given: sys.inherited, made: make(chan struct{}), ended: make(chan struct{}), dying: make(chan struct{})}
	sys.start = func(_ context.Context, c command, ready, control int, socks []int) (proc.Process, error) {
		return h.start(g, ready, control, socks)
	}
	sys.signals = h.signals
	if h.tamper != nil && sys.inherited != nil {
		h.tamper(n, sys.inherited)
	}
	h.t.Cleanup(g.die)
	go g.run(sys)
	return g
}

func (g *generation) run(sys system) {
	opts := append([]Option{NoSignals(), Logger(nil), DrainTimeout(limit), ReadyTimeout(limit)}, g.house.opts(g.n)...)
	g.Upgrader, g.err = newUpgrader(sys, opts)
	close(g.made)
	if g.err == nil {
		g.err = g.house.main(g)
	}
	if g.err != nil {
		g.death.CompareAndSwap(nil, deaths().exited)
	}
	g.house.born <- g
	if g.Upgrader != nil && g.err == nil {
		<-g.Done()
	}
	g.death.CompareAndSwap(nil, deaths().exited)
	g.exit()
}

// exit is what the kernel does at the end of a process.
func (g *generation) exit() {
	<-g.made
	g.endOnce.Do(func() {
		defer close(g.ended)
		if g.Upgrader == nil && g.given == nil {
			panic(g.err)
		}
		if g.Upgrader == nil { // New has closed the channel and the pipe
			for i := range g.given.count {
				unix.Close(g.given.first + i)
			}
			return
		}
		u := g.Upgrader
		if u.parent != nil {
			u.parent.ch.Close()
			u.parent.ready.Close()
		}
		u.post(func() {
			if u.child != nil {
				u.child.ch.Close()
				u.child, u.m.child = nil, childState{}
			}
			if u.m.state != stopped { // else it ends by itself
				u.m.state, u.m.ended, u.m.stop = stopped, true, stopService
				u.cancel()
				close(u.done)
			}
		})
		<-u.over
		if u.leash != nil {
			u.leash.conn.Close()
		}
		u.leashes.dropAll()
		u.socks.Close()
		if u.pid != nil {
			u.pid.release(false)
		}
	})
}

// die is SIGKILL.
func (g *generation) die() {
	g.death.CompareAndSwap(nil, deaths().killed)
	<-g.made
	if u := g.Upgrader; u != nil && u.parent != nil {
		u.parent.ch.Close() // first: the dead say nothing
	}
	g.dieOnce.Do(func() { close(g.dying) })
	g.exit()
}

func (g *generation) Pid() int { return 100000 + g.n }

func (g *generation) Kill() error {
	if g.house.unkillable.Load() {
		return unix.EPERM
	}
	g.death.CompareAndSwap(nil, deaths().killed)
	select {
	case <-g.made:
		if g.Upgrader != nil {
			g.cancel() // the dead take nothing, whatever their goroutines see first
		}
	default:
	}
	go g.die()
	return nil
}

func (g *generation) Wait() (*os.ProcessState, error) {
	<-g.ended
	return g.death.Load(), nil
}

// deaths are two ways in which a process ends; they can't be made up.
var deaths = sync.OnceValue(func() (d struct{ exited, killed *os.ProcessState }) {
	end := func(signal string) *os.ProcessState {
		c := exec.Command("sh", "-c", signal)
		c.Run()
		return c.ProcessState
	}
	d.exited, d.killed = end("exit 3"), end("kill -9 $$")
	return d
})

// An oldLife is the lifeline of a generation's parent.
type oldLife struct{ g *generation }

func (l oldLife) Over() bool {
	select {
	case <-l.g.ended:
		return true
	default:
		return false
	}
}

func (l oldLife) Await(stop <-chan struct{}) bool {
	select {
	case <-l.g.ended:
		return true
	case <-stop:
		return false
	}
}

func (l oldLife) Close() {}

// start is system.start of the generation old, the parent.
func (h *house) start(old *generation, ready, control int, socks []int) (proc.Process, error) {
	fds := append([]int{ready, control}, socks...)
	base, err := fdtest.InOrder(fds)
	if err != nil {
		return nil, err
	}
	return h.begin(system{inherited: &handover{
		version: protocolVersion, ready: base, control: base + 1, first: base + 2, count: len(socks),
	}, parentLife: func(*net.UnixConn, int) proc.Life { return oldLife{old} }}), nil
}

// serve answers each connection with the generation's number.
func (g *generation) serve(l net.Listener) {
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(c, g.n)
			c.Close()
		}
	}()
}

func ask(t *testing.T, a net.Addr) string {
	t.Helper()
	c, err := net.DialTimeout(a.Network(), a.String(), limit)
	if err != nil {
		t.Fatalf("dial: %v", err)
	}
	return answer(t, c)
}

// askUntil asks until generation want answers. The old one goes on accepting until it has
// heard that the new one accepts, which Ready does not wait for.
func askUntil(t *testing.T, a net.Addr, want string) {
	t.Helper()
	until(t, "generation "+want+" to answer", func() bool { return ask(t, a) == want })
}

func answer(t *testing.T, c net.Conn) string {
	t.Helper()
	defer c.Close()
	c.SetDeadline(time.Now().Add(limit))
	b, err := io.ReadAll(c)
	if err != nil {
		t.Fatalf("read the answer: %v", err)
	}
	return string(b)
}

// receive is wait.For, and until wait.Until.
func receive[T any](t testing.TB, c <-chan T, what string) T {
	t.Helper()
	return wait.For(t, c, what)
}

func until(t testing.TB, what string, cond func() bool) {
	t.Helper()
	wait.Until(t, what, cond)
}

// upgrade calls Upgrade in the background.
func (g *generation) upgrade() <-chan error {
	c := make(chan error, 1)
	go func() { c <- g.Upgrade(g.house.t.Context()) }()
	return c
}

// toProbation starts the next generation: that serves, and g stands by. done gives the
// result of the upgrade.
func (g *generation) toProbation() (next *generation, done <-chan error) {
	g.house.t.Helper()
	done = g.upgrade()
	next = g.house.next()
	if next.err != nil {
		g.house.t.Fatal(next.err)
	}
	g.await(standingBy)
	return next, done
}

// toDrain starts the next generation, and gives it once g drains, and d with it: d says
// so by begun. The Probation of g is 0.
func (g *generation) toDrain(d serve.Drainer, begun <-chan *serve.Drain) (next *generation) {
	g.house.t.Helper()
	g.host.Add(d)
	done := g.upgrade()
	next = g.house.next()
	if err := receive(g.house.t, done, "Upgrade"); err != nil {
		g.house.t.Fatal(err)
	}
	receive(g.house.t, begun, "the drain")
	return next
}

func wantErr(t *testing.T, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Fatalf("got error %v, want one that is %q", got, want)
	}
}

// await waits until the generation has reached a state.
func (g *generation) await(want state) {
	g.house.t.Helper()
	end := time.After(limit)
	for {
		c, posted := make(chan state, 1), make(chan bool, 1)
		go func() { posted <- g.post(func() { c <- g.m.state }) }()
		if !receive(g.house.t, posted, "the loop") {
			g.house.t.Fatalf("generation %d has ended, want it %v", g.n, want)
		}
		got := receive(g.house.t, c, "the loop")
		if got == want {
			return
		}
		select {
		case <-end:
			g.house.t.Fatalf("generation %d is %v after %v, want %v", g.n, got, limit, want)
		default:
			runtime.Gosched()
		}
	}
}

// askStop is Shutdown that does not wait.
func (u *Upgrader) askStop() { u.happen(evStop{}) }
