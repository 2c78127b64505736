//go:build unix

package serve

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/sockets"
	"github.com/julofinance/grace/v3/internal/testing/wait"
)

// What belongs to a drain is not to happen after that was called off, and what happens
// because it was called off is not to come too early.

// handsOver lets a process have handed all listeners over.
func (a *solo) handsOver() {
	a.Socks.Yield(a.Socks.Snapshot(), []int{0})
	a.Socks.EndAccept()
}

// A greeter is a server with a protocol of its own, which says hello on each connection
// and then reads.
type greeter struct {
	*solo
	*otherServer
	ln     net.Listener
	served <-chan error
	conns  chan *greeted
}

// A greeted is one connection.
type greeted struct {
	client net.Conn
	errs   chan error // of Read
}

func newGreeter(t *testing.T) *greeter {
	t.Helper()
	u, ln := newProcess(t)
	g := &greeter{solo: u, ln: ln, conns: make(chan *greeted, 9)}
	g.served = u.run(t, u.Other(ForeignServer{
		Listener: ln,
		Protocol: "own",
		Serve: func(ln net.Listener) error {
			for {
				c, err := ln.Accept()
				if err != nil {
					return err
				}
				fmt.Fprintln(c, "hello")
				conn := &greeted{errs: make(chan error, 9)}
				g.conns <- conn
				go func() {
					defer c.Close()
					for {
						_, err := c.Read(make([]byte, 9))
						conn.errs <- err
						if !errors.Is(err, sockets.ErrMove) { // it is not at a point where it could move
							return
						}
					}
				}()
			}
		},
	}))
	g.otherServer = u.All()[1].(*otherServer)
	return g
}

// connect connects. The server has accepted when it returns.
func (g *greeter) connect(t *testing.T) *greeted {
	t.Helper()
	c, err := net.DialTimeout("tcp", g.ln.Addr().String(), wait.Limit)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(wait.Limit))
	if s, err := bufio.NewReader(c).ReadString('\n'); s != "hello\n" {
		t.Fatalf("read %q, %v, want an answer", s, err)
	}
	conn := wait.For(t, g.conns, "the connection")
	conn.client = c
	return conn
}

// mustNotBeTold ends the connection, of which the server has heard nothing else.
func (c *greeted) mustNotBeTold(t *testing.T) {
	t.Helper()
	c.client.Close()
	if err := wait.For(t, c.errs, "the end of a Read"); errors.Is(err, sockets.ErrMove) {
		t.Error("a Read says that the process ends")
	}
}

func (g *greeter) mustEnd(t *testing.T) {
	t.Helper()
	g.solo.mustEnd(t, g.served)
}

// TestAcceptedBeforeResume: what waits at the gates is accepted when a drain was called off,
// and not told to go, though its server is resumed later.
func TestAcceptedBeforeResume(t *testing.T) {
	g := newGreeter(t)
	g.handsOver()
	d := NewDrain(nil)
	g.Drain(d) // it has nothing
	d.Cancel()
	g.reopen(t)
	g.connect(t).mustNotBeTold(t)
	g.Resume()
	g.mustEnd(t)
}

// TestDrainThatIsLate: a drain that is called off before it comes to a server tells no
// connection of it.
func TestDrainThatIsLate(t *testing.T) {
	g := newGreeter(t)
	c := g.connect(t)
	g.handsOver()
	d := NewDrain(nil)
	d.Cancel()
	drained := make(chan Report, 1)
	d.mu.Lock() // a drain that has begun does not come to its end
	go func() { drained <- g.Drain(d) }()
	select {
	case <-drained:
	case err := <-c.errs:
		t.Errorf("a Read: %v", err)
	case <-time.After(wait.Limit):
		t.Fatal("the drain has neither begun nor ended")
	}
	d.mu.Unlock()
	g.reopen(t)
	c.mustNotBeTold(t)
	g.mustEnd(t)
}

// TestHTTPDrainThatIsLate: the same, and what was registered with RegisterOnShutdown is
// called by the drain that counts.
func TestHTTPDrainThatIsLate(t *testing.T) {
	u, ln := newProcess(t)
	told := make(chan struct{})
	srv := &http.Server{Handler: http.NotFoundHandler()}
	srv.RegisterOnShutdown(func() { close(told) })
	served := u.run(t, u.HTTP(srv, ln))
	s := u.httpServer(srv)
	d := NewDrain(nil)
	d.Cancel()
	s.Drain(d)
	if s.userShut.Load() {
		t.Error("a drain that was called off shuts the program's server down")
	}
	d = NewDrain(nil)
	drained := make(chan Report, 1)
	go func() { drained <- s.Drain(d) }()
	wait.For(t, told, "what was registered with RegisterOnShutdown")
	d.Cancel()
	wait.For(t, drained, "the end of the drain")
	u.mustEnd(t, served)
}

// An offering drainer is asked for an Offer before another one is.
type offering struct {
	Drainer
	begun, goesOn chan struct{}
}

func (o offering) Offer(*sockets.Mover) {
	close(o.begun)
	<-o.goesOn
}

// TestOfferThatIsLate: an Offer is under way when the drain is called off. It reaches no
// server that was resumed.
func TestOfferThatIsLate(t *testing.T) {
	g := newGreeter(t)
	c := g.connect(t)
	g.handsOver()
	d := NewDrain(nil)
	drained, offered := make(chan Report, 1), make(chan struct{})
	go func() { drained <- g.Drain(d) }()
	if err := wait.For(t, c.errs, "the drain"); !errors.Is(err, sockets.ErrMove) {
		t.Fatalf("a Read during the drain: %v, want ErrMove", err)
	}
	other := offering{begun: make(chan struct{}), goesOn: make(chan struct{})}
	go func() {
		d.Offer([]Drainer{other, g.otherServer})
		close(offered)
	}()
	wait.For(t, other.begun, "an Offer")
	d.Cancel()
	g.reopen(t)
	wait.Until(t, "the server to see that the drain is called off", func() bool {
		return len(drained) > 0 || wait.ForMutex("(*Drain).back")
	})
	close(other.goesOn)
	wait.For(t, offered, "the end of the Offer")
	wait.For(t, drained, "the end of the drain")
	g.connect(t).mustNotBeTold(t)
	c.client.Close()
	g.mustEnd(t)
}

// An erring listener gives its error late.
type erring struct {
	net.Listener
	failed, goesOn chan struct{}
}

func (l erring) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		l.failed <- struct{}{}
		<-l.goesOn
	}
	return c, err
}

// TestServeEndsWhileItResumes: Serve returns, since its listener was closed in the drain, at
// the very moment at which the server hears that the drain was called off. It serves on.
func TestServeEndsWhileItResumes(t *testing.T) {
	for name, end := range map[string]bool{"HTTP": false, "HTTP behind a door": true} {
		t.Run(name, func(t *testing.T) {
			u, ln := newProcess(t)
			l := erring{ln, make(chan struct{}, 9), make(chan struct{})}
			srv := &http.Server{Handler: http.NotFoundHandler()}
			if end {
				srv.Protocols = new(http.Protocols)
				srv.Protocols.SetHTTP1(true)
				srv.Protocols.SetUnencryptedHTTP2(true)
			}
			served := u.run(t, u.HTTP(srv, l))
			s := u.httpServer(srv)
			mustAnswer(t, ln)
			u.handsOver()
			d := NewDrain(nil)
			s.draining.Store(d) // as in the midst of Drain
			ln.Close()
			wait.For(t, l.failed, "an Accept to fail")
			d.Cancel()
			u.reopen(t)
			s.mu.Lock() // Resume comes as far as here
			resumed := make(chan struct{})
			go func() { s.Resume(); close(resumed) }()
			wait.Until(t, "Resume", func() bool { return wait.ForMutex("(*httpServer).Resume") })
			close(l.goesOn)
			wait.Until(t, "Serve to return", func() bool {
				return len(served) > 0 || wait.ForMutex("(*httpServer).ending")
			})
			s.mu.Unlock()
			wait.For(t, resumed, "the end of Resume")
			if len(served) == 0 {
				mustAnswer(t, ln)
			}
			u.mustEnd(t, served)
		})
	}
}

// TestOtherServeEndsWhileItResumes: the same, of one that is not net/http's.
func TestOtherServeEndsWhileItResumes(t *testing.T) {
	u, ln := newProcess(t)
	serves, ends := make(chan struct{}, 9), make(chan struct{})
	served := u.run(t, u.Other(ForeignServer{
		Listener: ln,
		Serve: func(net.Listener) error {
			serves <- struct{}{}
			<-ends
			return net.ErrClosed
		},
	}))
	wait.For(t, serves, "Serve")
	u.handsOver()
	d := NewDrain(nil)
	s := u.All()[1].(*otherServer)
	s.draining.Store(true) // as in the midst of Drain
	d.Cancel()
	s.conns.mu.Lock() // Resume comes as far as here
	go s.Resume()
	wait.Until(t, "Resume", func() bool { return wait.ForMutex("(*otherServer).Resume") })
	ends <- struct{}{}
	wait.Until(t, "Serve to return", func() bool {
		return len(served) > 0 || wait.ForMutex("(*otherServer).endsByItself")
	})
	s.conns.mu.Unlock()
	wait.For(t, serves, "Serve after the drain was called off")
	u.reopen(t)
	u.askStop()
	wait.For(t, u.Done(), "Done")
	close(ends)
	if err := wait.For(t, served, "execute"); err != nil {
		t.Errorf("execute returned %v", err)
	}
}

// TestAnswerBegunInACalledOffDrain: a request that comes in a drain is answered when that was
// called off: the answer is not the last one of its connection.
func TestAnswerBegunInACalledOffDrain(t *testing.T) {
	u, ln := newProcess(t)
	begun, answer := make(chan struct{}, 1), make(chan struct{})
	srv := &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		begun <- struct{}{}
		<-answer
	})}
	served := u.run(t, u.HTTP(srv, ln))
	s := u.httpServer(srv)
	client := http.Client{Timeout: wait.Limit, Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	for _, calledOff := range []bool{true, false} {
		d := NewDrain(nil)
		drained := make(chan Report, 1)
		go func() { drained <- s.Drain(d) }()
		wait.Until(t, "the drain", s.ends)
		closes := make(chan bool, 1)
		go func() {
			resp, err := client.Get("http://" + ln.Addr().String())
			if err != nil {
				t.Error(err)
				closes <- !calledOff
				return
			}
			resp.Body.Close()
			closes <- resp.Close
		}()
		wait.For(t, begun, "the request")
		if calledOff {
			d.Cancel()
			wait.For(t, drained, "the end of the drain")
		}
		answer <- struct{}{}
		if got := wait.For(t, closes, "the answer"); got == calledOff {
			t.Errorf("called off: %v; the answer says Connection: close: %v", calledOff, got)
		}
		d.Cancel()
		if !calledOff {
			wait.For(t, drained, "the end of the drain")
		}
	}
	u.mustEnd(t, served)
}

// TestServeOnWhenTheGatesAreOpen: a server is called again for what waits in its listener,
// and the gates are open by then. It accepts from the kernel, too.
func TestServeOnWhenTheGatesAreOpen(t *testing.T) {
	u, ln := newProcess(t, cutsOffAfter(time.Millisecond))
	s := newLeaver(ln)
	served := u.run(t, u.Other(s.ForeignServer))
	wait.For(t, s.serves, "Serve")
	mustServe(t, ln)
	u.handsOver()
	d := NewDrain(nil)
	drained := make(chan Report, 1)
	o := u.All()[1].(*otherServer)
	go func() { drained <- o.Drain(d) }()
	s.closes <- false
	wait.For(t, s.shut, "Shutdown to close the listener")
	d.Cancel()
	u.reopen(t)
	ln.Close()  // Shutdown once more, right now
	o.serveOn() // the drain has seen before that it was to be called
	wait.For(t, drained, "the end of the drain")
	wait.For(t, s.serves, "Serve")
	mustServe(t, ln)
	s.closes <- true
	wait.For(t, s.shut, "the end of Shutdown")
	u.mustEnd(t, served)
}
