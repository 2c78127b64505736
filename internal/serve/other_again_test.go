//go:build unix

package serve

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/sockets"
	"github.com/julofinance/grace/v3/internal/testing/wait"
)

// A stepper is a server that accepts when the test says so. Its Shutdown closes what Serve
// was given, when the test says so.
type stepper struct {
	ForeignServer
	calls  chan *call
	begun  chan struct{}      // Shutdown was called
	closes chan net.Listener  // lets Shutdown close it; nil: lets Shutdown return
	shut   chan struct{}      // Shutdown has closed it
	leaves chan chan struct{} // lets Serve close its listener, and return, when Accept has failed; nil: at once
}

// A call is one of Serve.
type call struct {
	ln     net.Listener
	accept chan struct{} // one Accept
	err    chan error    // what that has returned
}

func newStepper(ln net.Listener) *stepper {
	s := &stepper{calls: make(chan *call, 9), begun: make(chan struct{}, 9), closes: make(chan net.Listener), shut: make(chan struct{}, 9)}
	s.ForeignServer = ForeignServer{
		Listener: ln,
		Serve: func(ln net.Listener) error {
			c := &call{ln, make(chan struct{}, 9), make(chan error, 9)}
			s.calls <- c
			for range c.accept {
				conn, err := ln.Accept()
				c.err <- err
				if err != nil {
					if s.leaves != nil {
						left := <-s.leaves
						ln.Close()
						close(left)
					}
					return err
				}
				fmt.Fprintln(conn, "hello")
			}
			return nil
		},
		Shutdown: func(context.Context) error {
			s.begun <- struct{}{}
			for ln := range s.closes {
				if ln == nil {
					break
				}
				ln.Close()
				s.shut <- struct{}{}
			}
			return nil
		},
	}
	return s
}

// close lets Shutdown close ln.
func (s *stepper) close(t *testing.T, ln net.Listener) {
	t.Helper()
	s.closes <- ln
	wait.For(t, s.shut, "Shutdown to close the listener")
}

// mustAccept lets the call accept a connection.
func (c *call) mustAccept(t *testing.T) {
	t.Helper()
	c.accept <- struct{}{}
	if err := wait.For(t, c.err, "an Accept"); err != nil {
		t.Fatal(err)
	}
}

// mustFail lets the call see that it is over.
func (c *call) mustFail(t *testing.T) {
	t.Helper()
	c.accept <- struct{}{}
	if err := wait.For(t, c.err, "an Accept"); err == nil {
		t.Fatal("a Serve that was shut down accepts")
	}
}

// stepped runs a stepper that has one connection, which stays open.
func stepped(t *testing.T, wrap func(net.Listener) net.Listener, prepare func(*stepper)) (u *solo, ln net.Listener, s *stepper, served <-chan error, c *call) {
	t.Helper()
	u, ln = newProcess(t, cutsOffAfter(time.Millisecond))
	s = newStepper(wrap(ln))
	prepare(s)
	served = u.run(t, u.Other(s.ForeignServer))
	c = wait.For(t, s.calls, "Serve")
	open := queue(t, ln)
	c.mustAccept(t)
	mustBeGreeted(t, open)
	return u, ln, s, served, c
}

// callOff begins a drain, and calls it off when Shutdown was called, which runs on.
func (s *stepper) callOff(t *testing.T, u *solo, closes net.Listener) {
	t.Helper()
	u.handsOver()
	d := NewDrain(nil)
	drained := make(chan Report, 1)
	go func() { drained <- u.All()[1].Drain(d) }()
	wait.For(t, s.begun, "Shutdown")
	if closes != nil {
		s.close(t, closes)
		s.closes <- nil
	}
	d.Cancel()
	wait.For(t, drained, "the end of the drain")
}

// TestShutdownOfAnEarlierDrain: a drain is called off, and its Shutdown runs still when the
// next drain begins, and closes the listener while something is queued there that this
// process alone can accept: that is accepted, and only then is Shutdown called again.
func TestShutdownOfAnEarlierDrain(t *testing.T) {
	for how, end := range map[string]func(*sockets.Set){
		"stop":               func(s *sockets.Set) { s.EndAccept() },
		"upgrade, not taken": func(s *sockets.Set) { s.Yield(nil, nil); s.EndAccept() },
	} {
		for whose, wrap := range wraps {
			for times, twice := range map[string]bool{"once": false, "twice": true} {
				t.Run(fmt.Sprintf("%s, %s, closed %s", how, whose, times), func(t *testing.T) {
					u, ln, s, served, c := stepped(t, wrap, func(*stepper) {})
					s.callOff(t, u, nil)
					u.reopen(t)

					queued := queue(t, ln)
					end(u.Socks)
					server := u.All()[1].(*otherServer)
					d := NewDrain(nil)
					drained := make(chan Report, 1)
					go func() { drained <- server.Drain(d) }()
					wait.Until(t, "the drain", server.draining.Load)
					s.close(t, c.ln)
					c.mustFail(t)
					c = wait.For(t, s.calls, "Serve for what is queued")
					if twice {
						s.close(t, c.ln)
						c.mustFail(t)
						s.closes <- nil
						c = wait.For(t, s.calls, "Serve when Shutdown has returned")
					}
					if len(s.begun) > 0 {
						t.Error("Shutdown is called while something is queued")
					}
					c.mustAccept(t)
					mustBeGreeted(t, queued)
					c.accept <- struct{}{} // sees that nothing is left
					wait.For(t, s.begun, "Shutdown")
					close(s.closes)
					d.Hurry()
					wait.For(t, drained, "the end of the drain")
					u.mustEnd(t, served)
				})
			}
		}
	}
}

// TestServeThatIsLate: Serve is called again before the former call has come to Accept, and
// seen that its listener was closed. That one gets no connection.
func TestServeThatIsLate(t *testing.T) {
	for whose, wrap := range wraps {
		t.Run(whose, func(t *testing.T) {
			u, ln, s, served, former := stepped(t, wrap, func(*stepper) {})
			s.callOff(t, u, former.ln)
			c := wait.For(t, s.calls, "Serve after the drain was called off")
			u.reopen(t)
			former.mustFail(t)
			queued := queue(t, ln)
			c.mustAccept(t)
			mustBeGreeted(t, queued)
			close(s.closes)
			c.accept <- struct{}{} // sees the end
			u.mustEnd(t, served)
		})
	}
}

// TestAcceptThatIsLate: an Accept of a call of Serve that is over gives what it gets to the
// next one.
func TestAcceptThatIsLate(t *testing.T) {
	u, ln := newProcess(t)
	defer wait.For(t, u.Done(), "Done")
	defer u.askStop()
	u.Ready()
	l := ln.(*sockets.Listener)
	former, next := &turn{Listener: l}, &turn{Listener: l}
	failed := make(chan error, 1)
	go func() {
		_, err := former.Accept()
		failed <- err
	}()
	wait.Until(t, "an Accept", l.Gate.IsOccupied)
	former.over.Store(true)
	client := queue(t, ln)
	if err := wait.For(t, failed, "the Accept"); err == nil {
		t.Fatal("a Serve that was shut down accepts")
	}
	c, err := next.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got, want := c.RemoteAddr().String(), client.LocalAddr().String(); got != want {
		t.Errorf("a connection from %s, want that from %s", got, want)
	}
}

// TestCloseOfAServeThatIsLate: Serve closes its listener when it returns, which comes when it
// was called again. The listener is the next call's.
func TestCloseOfAServeThatIsLate(t *testing.T) {
	for whose, wrap := range wraps {
		t.Run(whose, func(t *testing.T) {
			u, ln, s, served, former := stepped(t, wrap, func(s *stepper) { s.leaves = make(chan chan struct{}, 9) })
			s.callOff(t, u, former.ln)
			former.mustFail(t)
			c := wait.For(t, s.calls, "Serve after the drain was called off")
			u.reopen(t)
			left := make(chan struct{})
			s.leaves <- left
			wait.For(t, left, "the former Serve to close its listener")
			queued := queue(t, ln)
			c.mustAccept(t)
			mustBeGreeted(t, queued)
			for range cap(s.leaves) {
				s.leaves <- make(chan struct{})
			}
			close(s.closes)
			c.accept <- struct{}{} // sees the end
			u.mustEnd(t, served)
		})
	}
}

// TestServeEndsAfterARollBack: a drain is called off, and Serve did not end in it. What that
// does later is of no concern to it: in the next drain Serve is called again when that one is
// called off, and one that ends by itself ends the server.
func TestServeEndsAfterARollBack(t *testing.T) {
	u, ln := newProcess(t)
	own := errors.New("its own")
	server, served, serves, ends := u.runEndable(t, ln)
	queue(t, ln)
	accepted, err := ln.Accept() // a drain does not end before it is called off
	if err != nil {
		t.Fatal(err)
	}
	drained := make(chan Report, 1)
	drain := func() *Drain {
		u.handsOver()
		d := NewDrain(nil)
		go func() { drained <- server.Drain(d) }()
		wait.Until(t, "the drain", server.draining.Load)
		return d
	}
	back := func(d *Drain) {
		d.Cancel()
		wait.For(t, drained, "the end of the drain")
		u.reopen(t)
	}
	back(drain())
	d := drain()
	server.mu.Lock()
	closed := server.closed
	server.mu.Unlock()
	ends <- net.ErrClosed
	wait.For(t, closed, "the end of Serve")
	for range 1000 { // what is not waited for goes on now
		runtime.Gosched()
	}
	if len(serves) > 0 {
		t.Error("Serve is called again in the drain that has ended it")
	}
	back(d)
	wait.For(t, serves, "Serve after the drain was called off")
	back(drain())
	ends <- own
	if err := wait.For(t, served, "execute"); !errors.Is(err, own) {
		t.Errorf("execute returned %v, want %v", err, own)
	}
	accepted.Close()
	u.askStop()
	wait.For(t, u.Done(), "Done")
}

// TestServeThatFails: a server that fails closes its listener, as those of net/http and gRPC
// do. It has ended, also if that listener is the user's own around ours.
func TestServeThatFails(t *testing.T) {
	for name, wrap := range wraps {
		t.Run(name, func(t *testing.T) {
			u, ln := newProcess(t)
			own := errors.New("its own")
			served := u.run(t, u.Other(ForeignServer{
				Listener: wrap(ln),
				Serve:    func(ln net.Listener) error { ln.Close(); return own },
				Shutdown: func(context.Context) error { return nil },
			}))
			if err := wait.For(t, served, "execute"); err != own {
				t.Errorf("execute returned %v, want %v", err, own)
			}
			u.askStop()
			wait.For(t, u.Done(), "Done")
		})
	}
}

// TestServeThatServesOnce: a server that can't serve twice, as gRPC's can't, closes what it is
// given and fails. The error says what to do.
func TestServeThatServesOnce(t *testing.T) {
	for name, wrap := range wraps {
		t.Run(name, func(t *testing.T) {
			u, ln := newProcess(t, cutsOffAfter(time.Millisecond))
			serves, shut, own := make(chan net.Listener, 9), make(chan struct{}, 9), errors.New("it serves once")
			calls := 0
			var first net.Listener
			served := u.run(t, u.Other(ForeignServer{
				Listener: wrap(ln),
				Serve: func(ln net.Listener) error {
					serves <- ln
					if calls++; calls > 1 {
						ln.Close()
						return own
					}
					for {
						if _, err := ln.Accept(); err != nil {
							return err
						}
					}
				},
				Shutdown: func(ctx context.Context) error {
					first.Close()
					shut <- struct{}{}
					<-ctx.Done()
					return nil
				},
			}))
			first = wait.For(t, serves, "Serve")
			server := u.All()[1].(*otherServer)
			client := queue(t, ln)
			wait.Until(t, "the connection to be accepted", func() bool { return len(server.conns.tracks()) > 0 })
			u.handsOver()
			d := NewDrain(nil)
			drained := make(chan Report, 1)
			go func() { drained <- server.Drain(d) }()
			wait.For(t, shut, "Shutdown")
			d.Cancel()
			wait.For(t, drained, "the end of the drain")
			u.reopen(t)
			u.Reopened()
			wait.For(t, serves, "Serve to be called again")
			if err := wait.For(t, served, "execute"); !errors.Is(err, own) || !strings.Contains(err.Error(), "make a new server") {
				t.Errorf("the error is %v, want that it says to make a new server", err)
			}
			client.Close()
			u.askStop()
			wait.For(t, u.Done(), "Done")
		})
	}
}

// TestCloseBeforeTheGatesOpen: Serve is called again before the gates are open, and closes what
// it is given, which it can't serve. That is no end of the listener: it is called once more when
// this process accepts, and its error is execute's.
func TestCloseBeforeTheGatesOpen(t *testing.T) {
	for name, wrap := range wraps {
		t.Run(name, func(t *testing.T) {
			u, ln := newProcess(t)
			serves, ends, own := make(chan struct{}, 9), make(chan struct{}), errors.New("it serves once")
			var calls atomic.Int32
			served := u.run(t, u.Other(ForeignServer{Listener: wrap(ln), Serve: func(ln net.Listener) error {
				serves <- struct{}{}
				if calls.Add(1) > 1 {
					ln.Close()
					return own
				}
				<-ends
				return net.ErrClosed
			}}))
			wait.For(t, serves, "Serve")
			s := u.All()[1].(*otherServer)
			u.handsOver()
			s.mu.Lock()
			s.want() // as by a drain that is called off
			s.mu.Unlock()
			close(ends)
			wait.For(t, serves, "Serve to be called again")
			wait.Until(t, "its end", func() bool {
				s.mu.Lock()
				defer s.mu.Unlock()
				select {
				case <-s.closed:
					select {
					case <-s.wanted:
						return false // the first's
					default:
						return true
					}
				default:
					return false
				}
			})
			u.reopen(t)
			u.Reopened()
			wait.For(t, serves, "Serve to be called once more")
			if err := wait.For(t, served, "execute"); !errors.Is(err, own) {
				t.Errorf("execute returned %v, want %v", err, own)
			}
		})
	}
}

// TestWhatWasGivenBackComesFirst: an entrance that is closed gives a connection back to the
// hall, whose next Accept fails: the next entrance gets the connection, and only then the
// error.
func TestWhatWasGivenBackComesFirst(t *testing.T) {
	h := newHall(nil, func() {})
	h.begin.Do(func() {}) // it accepts nothing by itself
	e := h.open(func() {})
	h.holds.Store(1)
	accepted := make(chan arrived, 2)
	go func() {
		for range 2 {
			c, err := e.Accept()
			accepted <- arrived{conn: c, err: err}
		}
	}()
	c, other := net.Pipe()
	defer c.Close()
	defer other.Close()
	failed := errors.New("no more connections")
	for _, a := range []arrived{{err: failed, n: e.n}, {conn: c}, {err: failed, n: e.n}} {
		select {
		case h.out <- a:
		case <-time.After(wait.Limit):
			t.Fatal("no Accept takes what has arrived")
		}
	}
	if a := wait.For(t, accepted, "an Accept"); a.conn != c {
		t.Errorf("the first Accept gives %v, %v, want the connection", a.conn, a.err)
	}
	if a := wait.For(t, accepted, "an Accept"); a.err != failed {
		t.Errorf("the second Accept gives %v, %v, want the error", a.conn, a.err)
	}
}

// TestParkedForTheServeBefore: that the listener was closed is heard when Serve has ended by
// that, and was called again. It does not end the new call.
func TestParkedForTheServeBefore(t *testing.T) {
	u, ln := newProcess(t, cutsOffAfter(time.Millisecond))
	s := newStepper(ln)
	served := u.run(t, u.Other(s.ForeignServer))
	c := wait.For(t, s.calls, "Serve")
	u.All()[1].(*otherServer).onSpared()
	client := queue(t, ln)
	c.mustAccept(t)
	mustBeGreeted(t, client)
	close(s.closes)
	c.accept <- struct{}{} // sees the end
	u.mustEnd(t, served)
}
