//go:build unix

package grace

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/serve"
	"github.com/julofinance/grace/v3/internal/sockets"
	"github.com/julofinance/grace/v3/internal/testing/wait"
)

// newSolo gives an Upgrader of a process that has no other, and a listener.
func newSolo(t *testing.T, opts ...Option) (*Upgrader, net.Listener) {
	t.Helper()
	u, err := newUpgrader(system{}, append([]Option{NoSignals(), Logger(nil), DrainTimeout(limit)}, opts...))
	if err != nil {
		t.Fatal(err)
	}
	ln, err := u.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return u, ln
}

// A slowDrainer notices late that a drain was called off.
type slowDrainer struct {
	begun  chan *serve.Drain
	notice chan struct{}
}

func (s *slowDrainer) Drain(d *serve.Drain) serve.Report {
	s.begun <- d
	select {
	case <-d.CalledOff():
		<-s.notice
	case <-s.notice:
	}
	return serve.Report{}
}

func (s *slowDrainer) Offer(*sockets.Mover) {}
func (s *slowDrainer) Resume()              {}
func (s *slowDrainer) End()                 {}

// TestStopRightAfterRollBack: the drain of the upgrade is still being called off
// when the process is told to stop. It drains all the same.
func TestStopRightAfterRollBack(t *testing.T) {
	h := newHouse(t, func(g *generation) error { return g.Ready() })
	h.opts = func(int) []Option { return []Option{Probation(0)} }
	g := h.first()
	slow := &slowDrainer{begun: make(chan *serve.Drain, 9), notice: make(chan struct{})}
	next := g.toDrain(slow, slow.begun)
	next.die()
	g.await(resuming)
	g.askStop()
	g.await(resuming) // the loop has seen it
	slow.notice <- struct{}{}
	select {
	case <-slow.begun:
	case <-g.Done():
		t.Fatal("the process has stopped without a drain")
	case <-time.After(limit):
		t.Fatal("no drain, and no end")
	}
	slow.notice <- struct{}{}
	receive(t, g.Done(), "Done")
}

// TestCloseBeforeNewAccepts: the old process gives up when it has let the new one go,
// and the new one does not accept yet. The path of a unix socket is the new one's by
// then, also if it asks for it only now; one that it never asks for is the old one's,
// which serves what is queued there.
func TestCloseBeforeNewAccepts(t *testing.T) {
	dir := t.TempDir()
	path, late, dropped := filepath.Join(dir, "s"), filepath.Join(dir, "late"), filepath.Join(dir, "dropped")
	agreed, accept, serve := make(chan struct{}), make(chan struct{}), make(chan struct{})
	h := newHouse(t, func(g *generation) error {
		listen := func(paths ...string) error {
			for _, path := range paths {
				l, err := g.Listen("unix", path)
				if err != nil {
					return err
				}
				go func() {
					if path == dropped {
						<-serve
					}
					g.serve(l)
				}()
			}
			return nil
		}
		if g.n == 1 {
			return errors.Join(listen(path, late, dropped), g.Ready())
		}
		if err := errors.Join(listen(path), g.handshake()); err != nil {
			return err
		}
		close(agreed)
		<-accept
		if err := listen(late); err != nil {
			return err
		}
		reply := make(chan error, 1)
		g.post(func() { reply <- g.m.onReady() })
		return <-reply
	})
	old := h.first()
	queued, err := net.Dial("unix", dropped)
	if err != nil {
		t.Fatal(err)
	}
	done := old.upgrade()
	receive(t, agreed, "go")
	old.Abort()
	old.await(upgrading) // the loop has seen it
	close(accept)
	next := h.next()
	if next.err != nil {
		t.Fatal(next.err)
	}
	close(serve)
	if got := answer(t, queued); got != "1" {
		t.Errorf("what was queued on a socket that the new process did not want is answered by %q, want 1", got)
	}
	receive(t, old.Done(), "Done of the old one")
	receive(t, done, "Upgrade")
	for _, p := range []string{path, late} {
		if got := ask(t, strAddr{"unix", p}); got != "2" {
			t.Errorf("%s: generation %s answers, want 2", p, got)
		}
	}
	if _, err := os.Lstat(dropped); !os.IsNotExist(err) {
		t.Errorf("the path of a socket that no process has any more is there: error %v", err)
	}
	next.askStop()
	receive(t, next.Done(), "Done of the new one")
	for _, p := range []string{path, late} {
		if _, err := os.Lstat(p); !os.IsNotExist(err) {
			t.Errorf("after the last stop the path %s is there: error %v", p, err)
		}
	}
}

// The same, and the new process dies: the old one ends all the same, having served
// until then.
func TestCloseBeforeNewDies(t *testing.T) {
	addrs := make(chan net.Addr, 9)
	one := oneListener(addrs)
	agreed, die := make(chan struct{}), make(chan struct{})
	h := newHouse(t, func(g *generation) error {
		if g.n == 1 {
			return one(g)
		}
		if err := g.handshake(); err != nil {
			return err
		}
		close(agreed)
		<-die
		return errors.New("broken")
	})
	old := h.first()
	addr := <-addrs
	done := old.upgrade()
	receive(t, agreed, "go")
	old.Abort()
	old.await(upgrading)
	if got := ask(t, addr); got != "1" {
		t.Errorf("generation %s answers, want 1", got)
	}
	close(die)
	wantErr(t, receive(t, done, "Upgrade"), ErrExited)
	receive(t, old.Done(), "Done of the old one")
}

// A Serve ends in probation, when there is nothing for it to do, and then the new process
// dies: it is called again.
func TestServeEndsInProbation(t *testing.T) {
	addrs, end := make(chan net.Addr, 1), make(chan error)
	var calls atomic.Int32
	h := newHouse(t, func(g *generation) error {
		l, err := g.Listen("tcp", "127.0.0.1:0")
		if err != nil || g.n > 1 {
			return errors.Join(err, g.Ready())
		}
		execute, _ := g.Server(Server{Listener: l, Serve: func(ln net.Listener) error {
			if calls.Add(1) == 1 {
				return <-end
			}
			for {
				c, err := ln.Accept()
				if err != nil {
					return err
				}
				c.Write([]byte("1"))
				c.Close()
			}
		}})
		go execute()
		addrs <- l.Addr()
		return g.Ready()
	})
	h.opts = func(int) []Option { return []Option{Probation(limit)} }
	runs := func() bool { return wait.Runs("serve.(*otherServer).serve.func") }
	wait.Until(t, "the end of those of other tests", func() bool { return !runs() })
	old := h.first()
	addr := <-addrs
	wait.Until(t, "Serve", runs)
	done := old.upgrade()
	next := h.next()
	old.await(standingBy)
	end <- errors.New("its own")
	wait.Until(t, "the end of Serve", func() bool { return !runs() })
	next.die()
	wantErr(t, receive(t, done, "Upgrade"), ErrRolledBack)
	if got := ask(t, addr); got != "1" {
		t.Errorf("generation %s answers, want 1", got)
	}
	old.askStop()
	receive(t, old.Done(), "Done")
}

// A server that begins only when the process is told to stop, and its listener
// is closed, opens nothing again.
func TestStopRightAfterTheStart(t *testing.T) {
	u, ln := newSolo(t)
	execute, _ := u.HTTP(&http.Server{Handler: http.NotFoundHandler()}, ln)
	if err := u.Ready(); err != nil {
		t.Fatal(err)
	}
	// The drain waits for this one, so that the server begins in the middle of it.
	slow := &slowDrainer{begun: make(chan *serve.Drain, 1), notice: make(chan struct{})}
	u.host.Add(slow)
	u.askStop()
	receive(t, slow.begun, "the drain")
	parked := make(chan struct{})
	go func() {
		defer close(parked)
		ln.Accept()
	}()
	receive(t, parked, "an Accept of a listener that is closed")
	l := ln.(*sockets.Listener)
	if u.socks.Unpark(l); !l.Gate.IsParked() {
		t.Error("a server that begins now opens the listener again")
	}
	served := make(chan error, 1)
	go func() { served <- execute() }()
	close(slow.notice)
	receive(t, u.Done(), "Done")
	if err := receive(t, served, "execute"); err != nil {
		t.Errorf("execute returned %v", err)
	}
}

// One server has nothing left, and another one is draining still when the new
// process dies: both serve on.
func TestRollBackAfterAServerHasDrained(t *testing.T) {
	for name, give := range map[string]func(*Upgrader, net.Listener, chan struct{}) func() error{
		"Server": func(u *Upgrader, ln net.Listener, shut chan struct{}) func() error {
			closed := sync.OnceFunc(func() { close(shut) })
			execute, _ := u.Server(Server{
				Listener: ln,
				Serve: func(l net.Listener) error {
					for {
						c, err := l.Accept()
						if err != nil {
							return err
						}
						c.Write([]byte("x"))
						c.Close()
					}
				},
				Shutdown: func(context.Context) error { defer closed(); return ln.Close() },
			})
			return execute
		},
		"HTTP": func(u *Upgrader, ln net.Listener, shut chan struct{}) func() error {
			srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				c, _, err := http.NewResponseController(w).Hijack()
				if err == nil {
					c.Write([]byte("x"))
					go func() { c.Read(make([]byte, 1)); c.Close() }()
				}
			})}
			srv.RegisterOnShutdown(sync.OnceFunc(func() { close(shut) }))
			execute, _ := u.HTTP(srv, ln)
			return execute
		},
	} {
		t.Run(name, func(t *testing.T) {
			u, ln := newSolo(t)
			// One that says its end in words of its own.
			served := make(chan error, 1)
			shut := make(chan struct{})
			execute := give(u, ownWords{ln}, shut)
			go func() { served <- execute() }()
			if err := u.Ready(); err != nil {
				t.Fatal(err)
			}
			ask := func() net.Conn {
				t.Helper()
				c, err := net.DialTimeout("tcp", ln.Addr().String(), limit)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { c.Close() })
				c.SetDeadline(time.Now().Add(limit))
				c.Write([]byte("GET / HTTP/1.1\r\nHost: grace\r\n\r\n"))
				if _, err := c.Read(make([]byte, 1)); err != nil {
					t.Fatalf("no answer: %v", err)
				}
				return c
			}
			c := ask()
			u.socks.Yield(u.socks.Snapshot(), []int{0})
			u.socks.EndAccept()
			d := serve.NewDrain(nil)
			drained := make(chan serve.Report, 1)
			server := u.host.All()[1]
			go func() { drained <- server.Drain(d) }()
			receive(t, shut, "Shutdown")
			c.Close()
			receive(t, drained, "the drain of one server")
			d.Cancel()
			u.post(func() {
				u.socks.ReopenGates()
				u.drain = d
				u.m.state, u.m.drain = resuming, running
				u.m.onDrained()
			})
			ask().Close()
			u.askStop()
			receive(t, u.Done(), "Done")
			if err := receive(t, served, "execute"); err != nil {
				t.Errorf("execute returned %v", err)
			}
		})
	}
}

// ownWords is a listener that wraps another, whose errors are its own.
type ownWords struct{ net.Listener }

func (l ownWords) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, errors.New("no more connections")
	}
	return c, nil
}

// A new process handles signals before the PID file names it. That is in New if its PID
// file is another one than the old process's, otherwise in Ready.
func TestSignalsBeforePIDFile(t *testing.T) {
	for _, names := range [][]string{{"pid", "pid"}, {"pid", "other"}} {
		t.Run(names[1], func(t *testing.T) {
			dir, unnamed := t.TempDir(), errors.New("the PID file names no process")
			h := newHouse(t, func(g *generation) error { return g.Ready() })
			h.opts = func(n int) []Option {
				return []Option{Probation(0), PIDFile(filepath.Join(dir, names[n-1]))}
			}
			handled := make(chan error, 2)
			h.signals = func(u *Upgrader) func() {
				if u.parent == nil {
					return func() {}
				}
				if names[1] == names[0] {
					<-u.parent.goAhead // nothing else keeps it from taking the file
				}
				for range 1000 { // what is not waited for goes on now
					runtime.Gosched()
				}
				err := unnamed
				if u.pid != nil && u.pid.held() {
					err = errors.New("the PID file names a process that does not handle signals yet")
				}
				handled <- err
				return func() {}
			}
			defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
			g := h.first()
			done := g.upgrade()
			h.next()
			if err := receive(t, done, "Upgrade"); err != nil {
				t.Error(err)
			}
			if err := receive(t, handled, "signals to be handled"); err != unnamed {
				t.Error(err)
			}
		})
	}
}
