//go:build unix

package grace

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/proc"
	"github.com/julofinance/grace/v3/internal/serve"
	"github.com/julofinance/grace/v3/internal/sockets"
)

// What is outside hangs, for ever: nothing that the goroutine that owns the state
// does waits for it.

// A hook that does not heed its context keeps the process neither from ending,
// however often it is told to, nor from serving on.
func TestStopWhileBeforeUpgradeHangs(t *testing.T) {
	for name, stops := range map[string]int{"once": 1, "twice": 2, "three times": 3} {
		t.Run(name, func(t *testing.T) {
			called, hang := make(chan struct{}), make(chan struct{})
			t.Cleanup(func() { close(hang) })
			h := newHouse(t, func(g *generation) error { return g.Ready() })
			h.opts = func(int) []Option {
				return []Option{BeforeUpgrade(func(context.Context) error { close(called); <-hang; return nil })}
			}
			g := h.first()
			done := g.upgrade()
			receive(t, called, "BeforeUpgrade")
			for i := range stops {
				g.askStop()
				if i == 0 && stops > 1 {
					g.awaitEither(draining, stopped)
				}
			}
			receive(t, g.Done(), "Done")
			wantErr(t, receive(t, done, "Upgrade"), ErrStopped)
			if h.last != 1 {
				t.Errorf("%d generations, want 1", h.last)
			}
		})
	}
}

func TestBeforeUpgradeThatHangsIsLeftBehind(t *testing.T) {
	hang := make(chan struct{})
	h := newHouse(t, func(g *generation) error { return g.Ready() })
	h.opts = func(n int) []Option {
		if n > 1 {
			return []Option{Probation(0)}
		}
		return []Option{Probation(0), ReadyTimeout(time.Second), BeforeUpgrade(func(context.Context) error { <-hang; return nil })}
	}
	g := h.first()
	for _, want := range []string{"has not returned within 1s, and does not heed its context", "has still not returned"} {
		err := receive(t, g.upgrade(), "Upgrade")
		wantErr(t, err, ErrRefused)
		if !strings.Contains(err.Error(), want) {
			t.Errorf("Upgrade says %q, want %q in it", err, want)
		}
	}
	close(hang)
	until(t, "the hook to be seen to return", func() bool { return !g.checking.Load() })
	if err := receive(t, g.upgrade(), "Upgrade"); err != nil {
		t.Errorf("when the hook has returned after all: %v", err)
	}
}

// awaitEither waits until the generation has reached one of two states.
func (g *generation) awaitEither(a, b state) {
	g.house.t.Helper()
	for end := time.Now().Add(limit); ; {
		c := make(chan state, 1)
		if !g.post(func() { c <- g.m.state }) {
			return // it has ended
		}
		if got := receive(g.house.t, c, "the loop"); got == a || got == b {
			return
		} else if time.Now().After(end) {
			g.house.t.Fatalf("generation %d is %v, want %v or %v", g.n, got, a, b)
		}
	}
}

// The PID file's disk hangs when the new process dies: the old one accepts at once,
// says what has happened, and can be stopped.
func TestRollBackWhileThePIDFileHangs(t *testing.T) {
	addrs := make(chan net.Addr, 9)
	h := newHouse(t, oneListener(addrs))
	path := filepath.Join(t.TempDir(), "pid")
	h.opts = func(int) []Option { return []Option{Probation(time.Hour), PIDFile(path)} }
	g := h.first()
	addr := <-addrs
	next, done := g.toProbation()
	askUntil(t, addr, "2")
	g.Upgrader.pid.mu.Lock()
	defer g.Upgrader.pid.mu.Unlock()
	next.die()
	if got := ask(t, addr); got != "1" {
		t.Errorf("generation %s answers, want 1", got)
	}
	wantErr(t, receive(t, done, "Upgrade"), ErrRolledBack)
	again := g.upgrade()
	g.await(serving)
	g.askStop()
	wantErr(t, receive(t, again, "an Upgrade that waits for the PID file"), ErrStopped)
	receive(t, g.Done(), "Done")
}

// A listener that has to be opened again hangs in that, be it for the lock of a
// directory, a resolver or a disk: the others accept, and the process can be stopped.
func TestRollBackWhileAListenerHangs(t *testing.T) {
	addrs := make(chan net.Addr, 9)
	hang := make(chan struct{})
	defer close(hang)
	opening := make(chan struct{}, 9)
	h := newHouse(t, func(g *generation) error {
		if g.n == 1 { // the new version drops it
			l, err := g.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				return err
			}
			l.(*sockets.Listener).Open = func() (sockets.Opened, error) {
				opening <- struct{}{}
				<-hang
				return sockets.Opened{}, errors.New("hung")
			}
			g.serve(l)
		}
		l, err := g.Listen("tcp", "localhost:0")
		if err != nil {
			return err
		}
		g.serve(l)
		addrs <- l.Addr()
		return g.Ready()
	})
	h.opts = func(int) []Option { return []Option{Probation(0)} }
	g := h.first()
	addr := <-addrs
	// A drain that lasts.
	slow := &slowDrainer{begun: make(chan *serve.Drain, 9), notice: make(chan struct{}, 9)}
	next := g.toDrain(slow, slow.begun)
	dropped := g.socks.Snapshot()[0].Listener
	until(t, "the listener that the new process has dropped to be closed", dropped.IsShut)
	next.die()
	receive(t, opening, "the listener to be opened again")
	if got := ask(t, addr); got != "1" {
		t.Errorf("generation %s answers, want 1", got)
	}
	g.awaitEither(serving, resuming)
	slow.notice <- struct{}{} // of the drain that was called off, and of the last one
	slow.notice <- struct{}{}
	g.askStop()
	receive(t, g.Done(), "Done")
}

// A server of the program's that hangs in its end, or when it is to serve again, is
// not waited for without end.
func TestServersThatHang(t *testing.T) {
	hang := make(chan struct{})
	defer close(hang)
	h := newHouse(t, func(g *generation) error { return g.Ready() })
	h.opts = func(int) []Option { return []Option{Probation(0)} }
	g := h.first()
	s := &stuckDrainer{slowDrainer{begun: make(chan *serve.Drain, 9), notice: make(chan struct{}, 9)}, make(chan string, 9), hang}
	next := g.toDrain(s, s.begun)
	next.die()
	g.awaitEither(serving, resuming)
	s.notice <- struct{}{}
	if got := receive(t, s.called, "a call"); got != "resume" {
		t.Fatalf("%s was called, want resume", got)
	}
	looped := make(chan struct{})
	go g.post(func() { close(looped) })
	receive(t, looped, "the loop, while a server hangs")
	u, _ := newSolo(t)
	u.host.Add(s)
	if err := u.Ready(); err != nil {
		t.Fatal(err)
	}
	u.askStop()
	s.notice <- struct{}{}
	if got := receive(t, s.called, "a call"); got != "shutdown" {
		t.Fatalf("%s was called, want shutdown", got)
	}
	receive(t, u.Done(), "Done")
}

// A stuckDrainer hangs in resume and shutdown.
type stuckDrainer struct {
	slowDrainer
	called chan string
	hang   chan struct{}
}

func (s *stuckDrainer) Resume() { s.called <- "resume"; <-s.hang }
func (s *stuckDrainer) End()    { s.called <- "shutdown"; <-s.hang }

// An upgrade that was passed on to a new process which then dies is wanted still.
func TestPassedUpgradeIsNotForgotten(t *testing.T) {
	for name, end := range map[string]func(next *generation){
		"it dies":     (*generation).die,
		"it gives up": func(next *generation) { next.Abort() },
	} {
		t.Run(name, func(t *testing.T) {
			addrs := make(chan net.Addr, 9)
			h := newHouse(t, oneListener(addrs))
			h.opts = func(int) []Option { return []Option{Probation(time.Hour)} }
			g := h.first()
			addr := <-addrs
			next, done := g.toProbation()
			wantErr(t, receive(t, g.upgrade(), "the second Upgrade"), ErrHandedOver)
			end(next)
			wantErr(t, receive(t, done, "the first Upgrade"), ErrRolledBack)
			third := h.next()
			if third.n != 3 || third.err != nil {
				t.Fatalf("generation %d, error %v; want the third", third.n, third.err)
			}
			g.await(standingBy)
			askUntil(t, addr, "3")
		})
	}
}

// The new process hangs in its start, and this one is told to stop again and again
// when it has drained long ago.
func TestStopsWhileTheStartHangs(t *testing.T) {
	called, hang := make(chan struct{}), make(chan struct{})
	defer close(hang)
	u, err := newUpgrader(system{start: func(context.Context, command, int, int, []int) (proc.Process, error) {
		close(called)
		<-hang
		return nil, errors.New("no")
	}}, []Option{NoSignals(), Logger(nil), DrainTimeout(limit)})
	if err != nil {
		t.Fatal(err)
	}
	if err := u.Ready(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- u.Upgrade(t.Context()) }()
	receive(t, called, "the start")
	u.askStop()
	for drained := make(chan bool, 1); ; {
		u.post(func() { drained <- u.m.state == holding })
		if receive(t, drained, "the loop") {
			break
		}
	}
	for range 3 {
		u.askStop()
		u.Abort()
	}
	wantErr(t, receive(t, done, "Upgrade"), ErrStopped)
	receive(t, u.Done(), "Done")
}

// The PID file's disk hangs before the new process is started: the upgrade fails in
// time, and the process can be stopped. When the disk is back nothing is started.
func TestStartThatHangsIsLeftBehind(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pid")
	h := newHouse(t, func(g *generation) error { return g.Ready() })
	h.opts = func(int) []Option { return []Option{ReadyTimeout(time.Second), PIDFile(path)} }
	g := h.first()
	g.Upgrader.pid.mu.Lock()
	unlock := sync.OnceFunc(g.Upgrader.pid.mu.Unlock)
	defer unlock()
	wantErr(t, receive(t, g.upgrade(), "Upgrade"), ErrReadyTimeout)
	ended := make(chan struct{})
	u := g.Upgrader
	u.post(func() {
		go func() {
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			s, err := u.start(ctx, 1) // waits as the one that was left behind does
			if s != nil || err == nil {
				t.Errorf("a start whose time was over when the disk came back gave %v, %v", s, err)
			}
			close(ended)
		}()
	})
	g.askStop()
	receive(t, g.Done(), "Done")
	unlock()
	receive(t, ended, "the start to give up")
}
