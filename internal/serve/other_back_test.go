//go:build unix

package serve

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/sockets"
	"github.com/julofinance/grace/v3/internal/testing/wait"
)

// A leaver is a server whose Shutdown closes the listener: when the test says so.
type leaver struct {
	ForeignServer
	serves chan struct{} // Serve was called
	begun  chan struct{} // Shutdown was called
	closes chan bool     // lets Shutdown close the listener; true: and return
	shut   chan struct{} // Shutdown has closed it

	mu      sync.Mutex
	serving net.Listener // guarded by mu
}

func newLeaver(ln net.Listener) *leaver {
	s := &leaver{serves: make(chan struct{}, 9), begun: make(chan struct{}, 9), closes: make(chan bool), shut: make(chan struct{}, 9)}
	s.ForeignServer = ForeignServer{
		Listener: ln,
		Serve: func(ln net.Listener) error {
			s.mu.Lock()
			s.serving = ln
			s.mu.Unlock()
			s.serves <- struct{}{}
			for {
				c, err := ln.Accept()
				if err != nil {
					return err
				}
				fmt.Fprintln(c, "hello")
				go func() {
					io.Copy(io.Discard, c)
					c.Close()
				}()
			}
		},
		Shutdown: func(context.Context) error { // it may come to that when its context has ended
			s.begun <- struct{}{}
			for returns := false; !returns; {
				returns = <-s.closes
				s.mu.Lock()
				s.serving.Close()
				s.mu.Unlock()
				s.shut <- struct{}{}
			}
			return nil
		},
	}
	return s
}

// mustServe connects, and gets an answer. The connection stays open till the end of the
// test: a drain that is called off is one that has not ended yet.
func mustServe(t *testing.T, ln net.Listener) {
	t.Helper()
	mustBeGreeted(t, queue(t, ln))
}

// queue connects, and waits for nothing.
func queue(t *testing.T, ln net.Listener) net.Conn {
	t.Helper()
	c, err := net.DialTimeout("tcp", ln.Addr().String(), wait.Limit)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(wait.Limit))
	return c
}

// mustBeGreeted reads an answer.
func mustBeGreeted(t *testing.T, c net.Conn) {
	t.Helper()
	if s, err := bufio.NewReader(c).ReadString('\n'); s != "hello\n" {
		t.Fatalf("read %q, %v, want an answer", s, err)
	}
}

// reopen opens the gates, and those listeners that were closed.
func (a *solo) reopen(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), wait.Limit)
	defer cancel()
	a.Socks.ReopenGates()
	a.Socks.Settled(ctx)
}

// mustEnd ends the process, which ends the server.
func (a *solo) mustEnd(t *testing.T, served <-chan error) {
	t.Helper()
	a.askStop()
	wait.For(t, a.Done(), "Done")
	if err := wait.For(t, served, "execute"); err != nil {
		t.Errorf("execute returned %v", err)
	}
}

// TestServeEndsInProbation: Serve ends by itself while a new process serves, and this one
// does not drain yet. It is called again when that has died; and if it ends once more, the
// server does. Where the program has closed the listener it is not.
func TestServeEndsInProbation(t *testing.T) {
	for whose, wrap := range wraps {
		for _, closes := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, closed: %v", whose, closes), func(t *testing.T) {
				u, ln := newProcess(t)
				own := errors.New("its own")
				s, served, serves, ends := u.runEndable(t, wrap(ln))
				u.Socks.Yield(u.Socks.Snapshot(), []int{0})
				s.mu.Lock()
				closed := s.closed
				s.mu.Unlock()
				if closes {
					ln.Close()
				}
				ends <- own
				wait.For(t, closed, "the end of Serve")
				u.reopen(t)
				u.Reopened()
				if closes {
					u.mustEnd(t, served)
					if len(serves) > 0 {
						t.Error("Serve is called again, for a listener that the program has closed")
					}
					return
				}
				wait.For(t, serves, "Serve after the roll back")
				ends <- own
				if err := wait.For(t, served, "execute"); !errors.Is(err, own) {
					t.Errorf("execute returned %v, want %v", err, own)
				}
				u.askStop()
				wait.For(t, u.Done(), "Done")
			})
		}
	}
}

// runEndable runs a server whose Serve returns what it gets from ends.
func (a *solo) runEndable(t *testing.T, ln net.Listener) (s *otherServer, served <-chan error, serves chan struct{}, ends chan error) {
	t.Helper()
	serves, ends = make(chan struct{}, 9), make(chan error)
	served = a.run(t, a.Other(ForeignServer{Listener: ln, Serve: func(net.Listener) error {
		serves <- struct{}{}
		return <-ends
	}}))
	wait.For(t, serves, "Serve")
	return a.All()[1].(*otherServer), served, serves, ends
}

// TestServeEndsWhileItReopens: Serve ends by itself when a new process serves, and before
// that is noticed this one accepts again. It is the end of the server, as at any other time.
func TestServeEndsWhileItReopens(t *testing.T) {
	u, ln := newProcess(t)
	own := errors.New("its own")
	s, served, _, ends := u.runEndable(t, ln)
	u.Socks.Yield(u.Socks.Snapshot(), []int{0})
	s.mu.Lock()
	ends <- own
	wait.Until(t, "the end of Serve to be looked at", func() bool { return wait.ForMutex("endsByItself") })
	u.Socks.ReopenGates() // reopened has seen nothing
	s.mu.Unlock()
	if err := wait.For(t, served, "execute"); err != own {
		t.Errorf("execute returned %v, want %v", err, own)
	}
	u.askStop()
	wait.For(t, u.Done(), "Done")
}

var wraps = map[string]func(net.Listener) net.Listener{
	"our own": func(ln net.Listener) net.Listener { return ln },
	"wrapped": func(ln net.Listener) net.Listener { return rewording{ln} },
}

// How a process comes to drain, after which it may accept again.
var pauses = map[string]func(*sockets.Set){
	"handed over": func(s *sockets.Set) { s.Yield(s.Snapshot(), []int{0}); s.EndAccept() },
	"not taken":   func(s *sockets.Set) { s.Yield(nil, nil); s.EndAccept() },
	"paused":      func(s *sockets.Set) { s.Pause() },
}

// TestServeBeforeTheGatesOpen: a drain is called off when Shutdown has closed the listener,
// and only then the gates open again; after a pause a good while later, when what this
// process had lent is its own again. Serve, which is called at once, waits in Accept.
func TestServeBeforeTheGatesOpen(t *testing.T) {
	for how, pause := range pauses {
		for whose, wrap := range wraps {
			t.Run(how+", "+whose, func(t *testing.T) {
				u, ln := newProcess(t, cutsOffAfter(time.Millisecond))
				s := newLeaver(wrap(ln))
				served := u.run(t, u.Other(s.ForeignServer))
				wait.For(t, s.serves, "Serve")
				for range 3 {
					mustServe(t, ln)
					pause(u.Socks)
					d := NewDrain(nil)
					drained := make(chan Report, 1)
					go func() { drained <- u.All()[1].Drain(d) }()
					s.closes <- true
					wait.For(t, s.shut, "Shutdown")
					d.Cancel()
					wait.For(t, drained, "the end of the drain")
					wait.For(t, s.serves, "Serve after the drain was called off")
					if ln.(*sockets.Listener).Gate.IsParked() {
						t.Fatal("Accept returns an error, and the server ends")
					}
					u.reopen(t)
				}
				mustServe(t, ln)
				u.mustEnd(t, served)
			})
		}
	}
}

// TestShutdownThatIsLate: a drain is called off while Shutdown runs, which closes the
// listener after that, for the first time or, as a GracefulStop that becomes a Stop, once
// more: the server serves on.
func TestShutdownThatIsLate(t *testing.T) {
	for how, pause := range pauses {
		for whose, wrap := range wraps {
			for _, opens := range []string{"open", "shut"} {
				for _, closes := range []string{"once", "twice"} {
					t.Run(fmt.Sprintf("%s, %s, gates %s, closed %s", how, whose, opens, closes), func(t *testing.T) {
						u, ln := newProcess(t, cutsOffAfter(time.Millisecond))
						s := newLeaver(wrap(ln))
						served := u.run(t, u.Other(s.ForeignServer))
						wait.For(t, s.serves, "Serve")
						for range 3 {
							mustServe(t, ln)
							pause(u.Socks)
							d := NewDrain(nil)
							drained := make(chan Report, 1)
							go func() { drained <- u.All()[1].Drain(d) }()
							wait.For(t, s.begun, "Shutdown")
							if closes == "twice" {
								s.closes <- false
								wait.For(t, s.shut, "Shutdown to close the listener")
							}
							d.Cancel()
							wait.For(t, drained, "the end of the drain")
							if closes == "twice" {
								wait.For(t, s.serves, "Serve after the drain was called off")
							}
							if opens == "open" {
								u.reopen(t)
								mustServe(t, ln)
							}
							s.closes <- true
							wait.For(t, s.shut, "the end of Shutdown")
							wait.For(t, s.serves, "Serve after Shutdown")
							if opens == "shut" {
								u.reopen(t)
							}
						}
						mustServe(t, ln)
						u.mustEnd(t, served)
					})
				}
			}
		}
	}
}

// TestServeThatALateShutdownEnds: a Shutdown that goes on after the drain was called off ends
// a Serve that was called since, and does not close the listener. Serve is called again.
func TestServeThatALateShutdownEnds(t *testing.T) {
	u, ln := newProcess(t)
	serves, ends, over := make(chan struct{}, 9), make(chan struct{}), make(chan struct{})
	begun, goesOn := make(chan struct{}), make(chan struct{})
	own := errors.New("its own")
	end := func() {
		select {
		case ends <- struct{}{}:
		case <-over:
		}
	}
	served := u.run(t, u.Other(ForeignServer{
		Listener: ln,
		Serve: func(net.Listener) error {
			serves <- struct{}{}
			select {
			case <-ends:
				return errors.New("shut down")
			case <-over:
				return own
			}
		},
		Shutdown: func(context.Context) error {
			end()
			select {
			case begun <- struct{}{}:
				<-goesOn
				end()
			case <-over:
			}
			return nil
		},
	}))
	wait.For(t, serves, "Serve")
	u.Socks.Pause()
	go u.All()[1].Drain(NewDrain(nil))
	wait.For(t, begun, "Shutdown")
	u.All()[1].Resume()
	u.reopen(t)
	wait.For(t, serves, "Serve after the drain was called off")
	goesOn <- struct{}{}
	wait.For(t, serves, "Serve after Shutdown")
	close(over)
	if err := wait.For(t, served, "execute"); !errors.Is(err, own) {
		t.Errorf("execute returned %v, want %v", err, own)
	}
	u.askStop()
	wait.For(t, u.Done(), "Done")
}
