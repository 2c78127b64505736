//go:build unix

package grace

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/proc"
	"github.com/julofinance/grace/v3/internal/serve"
	"github.com/julofinance/grace/v3/internal/sockets"
	"github.com/julofinance/grace/v3/internal/testing/fdtest"
)

// What happens between two steps of a hand-over.

// A process that comes to life when it is not waited for any more takes nothing: not
// while the old one serves, nor when that has stopped, which is not its death.
func TestLateChildTakesNothing(t *testing.T) {
	for name, stops := range map[string]bool{"old serves on": false, "old has stopped": true} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path, pidPath := filepath.Join(dir, "s"), filepath.Join(dir, "pid")
			var main sync.Once
			h := newHouse(t, func(g *generation) error {
				l, err := g.Listen("unix", path)
				if err != nil {
					return err
				}
				g.serve(l)
				if g.n > 1 {
					main.Do(func() { t.Error("a process that is not waited for has come through New, and has taken a listener") })
				}
				return g.Ready()
			})
			h.opts = func(n int) []Option {
				if n > 1 { // New takes this one at once
					return []Option{PIDFile(pidPath + ".new")}
				}
				return []Option{ReadyTimeout(time.Second), DrainTimeout(time.Second), PIDFile(pidPath)}
			}
			g := h.first()
			start, called, hang := g.sys.start, make(chan struct{}), make(chan struct{})
			wake := sync.OnceFunc(func() { close(hang) })
			defer wake()
			g.sys.start = func(ctx context.Context, c command, ready, control int, socks []int) (proc.Process, error) {
				close(called)
				<-hang // an execve that does
				return start(ctx, c, ready, control, socks)
			}
			done := g.upgrade()
			receive(t, called, "the start")
			want := ErrReadyTimeout
			if stops {
				g.askStop()
				want = ErrStopped
			}
			wantErr(t, receive(t, done, "Upgrade"), want)
			if stops {
				receive(t, g.Done(), "Done of the old process")
			}
			h.unkillable.Store(true) // or it might be dead before it has done anything
			wake()
			late := h.next()
			wantErr(t, late.err, ErrStopped)
			receive(t, late.ended, "the end of the new process")
			if _, err := os.Lstat(pidPath + ".new"); !os.IsNotExist(err) {
				t.Errorf("its PID file is there: error %v", err)
			}
			if !stops {
				if got := ask(t, strAddr{"unix", path}); got != "1" {
					t.Errorf("generation %s answers, want 1", got)
				}
				return
			}
			if c, err := net.Dial("unix", path); err == nil {
				c.Close()
				t.Error("a service that was stopped has come back")
			}
		})
	}
}

// What the program itself has closed in probation a roll back does not open again,
// whichever process had the socket then; nor is it handed over, nor does its path stay.
func TestListenerClosedInProbation(t *testing.T) {
	dir := t.TempDir()
	claimed, dropped := filepath.Join(dir, "claimed"), filepath.Join(dir, "dropped")
	unwanted := make(chan net.Listener, 2)
	addrs := make(chan net.Addr, 9)
	one := oneListener(addrs)
	h := newHouse(t, func(g *generation) error {
		paths := map[int][]string{1: {claimed, dropped}, 2: {claimed}}
		for _, path := range paths[g.n] {
			l, err := g.Listen("unix", path)
			if err != nil {
				return err
			}
			g.serve(l)
			if g.n == 1 {
				unwanted <- l
			}
		}
		return one(g)
	})
	h.opts = func(int) []Option { return []Option{Probation(time.Hour)} }
	g := h.first()
	addr := <-addrs
	next, done := g.toProbation()
	var closed []net.Listener
	for range 2 {
		l := <-unwanted
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		closed = append(closed, l)
	}
	if got := ask(t, strAddr{"unix", claimed}); got != "2" {
		t.Errorf("before the roll back generation %s answers, want 2", got)
	}
	next.die()
	wantErr(t, receive(t, done, "Upgrade"), ErrRolledBack)
	if got := ask(t, addr); got != "1" {
		t.Errorf("generation %s answers, want 1", got)
	}
	for _, path := range []string{claimed, dropped} {
		until(t, "the end of the path "+path, func() bool { _, err := os.Lstat(path); return os.IsNotExist(err) })
	}
	for _, l := range closed {
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Accept of a listener that was closed returned %v", err)
		}
	}
	g.Upgrader.socks.MendAll() // nor does that open it
	again := g.upgrade()
	h.next()
	g.await(standingBy)
	if _, err := os.Lstat(claimed); !os.IsNotExist(err) {
		t.Errorf("the path is there again: error %v", err)
	}
	g.askStop()
	receive(t, again, "Upgrade")
	receive(t, g.Done(), "Done")
}

// A stop signal to the old process, to the new one or to both, at each step of a
// hand-over: which process serves then, and which has ended.
func TestStopAtEachStep(t *testing.T) {
	const nobody, first = "", "1"
	for _, step := range []struct {
		name string
		// toNew serves after a signal to the new process; after one to the old one, or
		// to both, no process does.
		toNew string
	}{
		{"launching", first},
		{"starting", first},
		{"ready is said", first}, // and the old process has not heard it
		{"go is heard", nobody},
		{"accepting is said", nobody}, // and the old process has not heard it
		{"standing by", nobody},
		{"draining", nobody},
	} {
		for _, to := range []struct {
			name     string
			old, new os.Signal
		}{
			{"TERM to old", syscall.SIGTERM, nil},
			{"TERM to new", nil, syscall.SIGTERM},
			{"TERM to both", syscall.SIGTERM, syscall.SIGTERM},
			{"TERM to old, INT to new", syscall.SIGTERM, syscall.SIGINT},
		} {
			t.Run(step.name+"/"+to.name, func(t *testing.T) {
				w := newStepper(t, step.name)
				want := nobody
				if to.old == nil {
					want = step.toNew
				}
				w.signal(w.next, to.new)
				w.signal(w.old, to.old)
				w.goOn()
				w.mustEnd(want)
			})
		}
	}
}

// A new process that has been told to stop is not the service, also if it has said that it
// is ready meanwhile, and hears go before it comes to telling the old one.
func TestGoAfterTheStop(t *testing.T) {
	addrs := make(chan net.Addr, 9)
	h := newHouse(t, oneListenerThen(addrs, func(g *generation) error {
		handled := make(chan struct{})
		g.post(func() {
			defer close(handled)
			g.cancel() // what the stop begins with
			<-g.parent.goAhead
			g.m.onStop(stopRequest{signal: syscall.SIGTERM})
		})
		err := g.Ready()
		<-handled
		g.parent.ch.Flush(limit) // the program exits a little later
		return err
	}))
	old := h.first()
	done := old.upgrade()
	wantErr(t, h.next().err, ErrStopped)
	wantErr(t, receive(t, done, "Upgrade"), ErrExited)
	if got := ask(t, <-addrs); got != "1" {
		t.Errorf("generation %s answers, want 1", got)
	}
	old.askStop()
	receive(t, old.Done(), "Done")
}

// A stepper is a hand-over that waits at one of its steps.
type stepper struct {
	t         *testing.T
	begun     time.Time
	h         *house
	old, next *generation
	stalled   bool // the old process's loop is
	done      <-chan error
	addr      net.Addr
	path, pid string
	goOn      func()
}

func newStepper(t *testing.T, step string) *stepper {
	dir := t.TempDir()
	w := &stepper{t: t, begun: time.Now(), path: filepath.Join(dir, "s"), pid: filepath.Join(dir, "pid")}
	addrs := make(chan net.Addr, 9)
	starting, accepting := newStop(t), newStop(t) // where the new process waits
	w.h = newHouse(t, func(g *generation) error {
		for _, a := range []strAddr{{"unix", w.path}, {"tcp", "127.0.0.1:0"}} {
			l, err := g.Listen(a.network, a.addr)
			if err != nil {
				return err
			}
			g.serve(l)
			addrs <- l.Addr()
		}
		if g.n == 1 {
			return g.Ready()
		}
		starting.wait(g)
		if err := g.handshake(); err != nil {
			return err
		}
		accepting.wait(g)
		return g.accept()
	})
	w.h.opts = func(n int) []Option {
		probation := time.Hour
		if step == "draining" {
			probation = 0
		}
		return []Option{PIDFile(w.pid), Probation(probation)}
	}
	w.old = w.h.first()
	<-addrs
	w.addr = <-addrs
	launched, slow := newStop(t), &slowDrainer{begun: make(chan *serve.Drain, 9), notice: make(chan struct{}, 9)}
	start := w.old.sys.start
	w.old.sys.start = func(ctx context.Context, c command, ready, control int, socks []int) (proc.Process, error) {
		p, err := start(ctx, c, ready, control, socks)
		launched.wait(w.old)
		return p, err
	}
	w.old.host.Add(slow)
	slow.notice <- struct{}{}
	if step == "draining" {
		<-slow.notice
	}
	w.done = w.old.upgrade()
	receive(t, launched.reached, "the start")
	w.next = receive(t, starting.reached, "the new process")
	stops := []*stop{launched, starting, accepting}
	pass := func() { stops[0].leave(); stops = stops[1:] }
	w.goOn = func() {
		for len(stops) > 0 {
			pass()
		}
		slow.notice <- struct{}{}
	}
	if step == "launching" {
		return w
	}
	pass()
	until(t, "the new process to be known", func() bool {
		known := make(chan bool, 1)
		w.old.post(func() { known <- w.old.child != nil })
		return receive(t, known, "the loop")
	})
	switch step {
	case "ready is said":
		w.stall()
		pass()
		until(t, "ready to be said", func() bool {
			raw, err := w.next.parent.ready.SyscallConn()
			return err != nil || raw.Control(func(uintptr) {}) != nil
		})
	case "go is heard", "accepting is said":
		pass()
		receive(t, accepting.reached, "go")
		if step == "accepting is said" {
			w.stall()
			pass()
			receive(t, w.h.born, "accepting to be said")
		}
	case "standing by", "draining":
		pass()
		pass()
		receive(t, w.h.born, "the new process to be ready")
		if step == "draining" {
			receive(t, slow.begun, "the drain")
		} else {
			w.old.await(standingBy)
		}
	}
	return w
}

// stall keeps the old process's loop from hearing anything until goOn.
func (w *stepper) stall() {
	stalled, hang := make(chan struct{}), make(chan struct{})
	go w.old.post(func() { close(stalled); <-hang })
	receive(w.t, stalled, "the loop")
	w.stalled = true
	goOn := w.goOn
	w.goOn = sync.OnceFunc(func() { close(hang); goOn() })
	w.t.Cleanup(w.goOn)
}

// signal sends a signal, if it is one; it has arrived when it returns, unless the
// loop is stalled.
func (w *stepper) signal(g *generation, s os.Signal) {
	if s == nil {
		return
	}
	handled := make(chan struct{})
	go func() {
		g.post(func() { g.m.onStop(stopRequest{signal: s, at: w.begun}) })
		g.post(func() {}) // it is done, or the loop has ended
		close(handled)
	}()
	if g != w.old || !w.stalled {
		receive(w.t, handled, "the signal to be handled")
	}
}

// mustEnd waits until all has come to its end: the process that serves then is want, or
// none if that is empty.
func (w *stepper) mustEnd(want string) {
	w.t.Helper()
	receive(w.t, w.next.ended, "the end of the new process")
	err := receive(w.t, w.done, "Upgrade")
	if want != "" {
		wantErr(w.t, err, ErrExited)
		for _, a := range []net.Addr{w.addr, strAddr{"unix", w.path}} {
			if got := ask(w.t, a); got != want {
				w.t.Errorf("%v: generation %s answers, want %s", a, got, want)
			}
		}
		until(w.t, "the PID file", func() bool { return w.old.Upgrader.pid.names() })
		if !fdtest.Listens(w.t, w.addr) {
			w.t.Error("no socket listens, though a process serves")
		}
		w.old.askStop()
	}
	receive(w.t, w.old.ended, "the end of the old process")
	for _, path := range []string{w.path, w.pid} {
		if _, err := os.Lstat(path); !os.IsNotExist(err) {
			w.t.Errorf("%s is left: error %v", path, err)
		}
	}
	if fdtest.Listens(w.t, w.addr) {
		w.t.Error("a process serves")
	}
}

// A stop is a place where a generation waits.
type stop struct {
	reached chan *generation
	leave   func()
	left    chan struct{}
}

func newStop(t *testing.T) *stop {
	s := &stop{reached: make(chan *generation, 9), left: make(chan struct{})}
	s.leave = sync.OnceFunc(func() { close(s.left) })
	t.Cleanup(s.leave)
	return s
}

func (s *stop) wait(g *generation) {
	s.reached <- g
	<-s.left
}

// A start that hangs has the listeners' descriptors, and no goroutine is in Accept: the
// drain of a process that is told to stop ends all the same.
func TestStopWhileAStartHasTheSockets(t *testing.T) {
	s := sockets.New(nil, 0)
	l, err := s.Listen(net.ListenConfig{}, "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s.OpenGates()
	err = sockets.WithFDs(s.ToHandOver(), func([]*sockets.Socket, []int) error {
		s.EndAccept()
		drained := make(chan serve.Report, 1)
		d := serve.NewDrain(nil)
		go func() { drained <- (&serve.Host{Socks: s}).All()[0].Drain(d) }()
		select {
		case <-drained:
		case <-time.After(limit):
			return errors.New("the drain waits for the start")
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	until(t, "the end of the listener", func() bool { l.Sock.Closing.Lock(); defer l.Sock.Closing.Unlock(); return l.Sock.FD < 0 })
}
