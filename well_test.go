//go:build unix

package grace

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/serve"
	"github.com/julofinance/grace/v3/internal/testing/logtest"
)

// soon is how much time a test that breaks a rule on purpose has.
const soon = 50 * time.Millisecond

// hangs is a main whose state goroutine hangs from the moment at which it accepts.
func (g *generation) hangs() error {
	if err := g.handshake(); err != nil {
		return err
	}
	ready := make(chan error, 1)
	g.post(func() {
		ready <- g.m.onReady()
		<-g.dying
	})
	return <-ready
}

// hang lets the state goroutine hang until the generation is killed.
func (g *generation) hang() { g.post(func() { <-g.dying }) }

// The new process hangs as soon as it is ready: it is killed, and the old one accepts
// again.
func TestNewHangsAfterReady(t *testing.T) {
	for name, probation := range map[string]time.Duration{"probation": soon, "no probation": 0} {
		t.Run(name, func(t *testing.T) {
			addrs := make(chan net.Addr, 9)
			h := newHouse(t, func(g *generation) error {
				l, err := g.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					return err
				}
				g.serve(l)
				addrs <- l.Addr()
				if g.n == 1 {
					g.m.limits.pong = soon
				}
				if g.n == 2 {
					return g.hangs()
				}
				return g.Ready()
			})
			h.opts = func(int) []Option { return []Option{Probation(probation)} }
			g := h.first()
			addr := <-addrs
			done := g.upgrade()
			h.next()
			err := receive(t, done, "Upgrade")
			wantErr(t, err, ErrRolledBack)
			if !strings.Contains(err.Error(), "did not answer for") {
				t.Errorf("the error is %q, want one that says why", err)
			}
			if got := ask(t, addr); got != "1" {
				t.Errorf("after the roll back generation %s answers, want 1", got)
			}
			// A version that is well is not killed.
			g.post(func() { g.m.limits.pong = limit })
			done = g.upgrade()
			next := h.next()
			if err := receive(t, done, "Upgrade"); err != nil {
				t.Fatal(err)
			}
			receive(t, g.Done(), "Done")
			next.askStop()
			receive(t, next.Done(), "Done of the new one")
		})
	}
}

// The new process hangs while the old one drains: the old one does not exit, which
// would leave no process that serves.
func TestNewHangsInTheDrain(t *testing.T) {
	addrs := make(chan net.Addr, 9)
	h := newHouse(t, oneListener(addrs))
	h.opts = func(int) []Option { return []Option{Probation(0)} }
	g := h.first()
	slow := &slowDrainer{begun: make(chan *serve.Drain, 9), notice: make(chan struct{}, 9)}
	next := g.toDrain(slow, slow.begun)
	next.hang()
	g.post(func() {
		g.m.limits.pong = soon
	})
	slow.notice <- struct{}{} // nothing is left
	receive(t, next.ended, "the end of the new one")
	g.await(serving)
	if got := ask(t, <-addrs); got != "1" {
		t.Errorf("after the roll back generation %s answers, want 1", got)
	}
	select {
	case <-g.Done():
		t.Error("the old process ends, and leaves no process that serves")
	default:
	}
	slow.notice <- struct{}{}
	g.askStop()
	receive(t, g.Done(), "Done")
}

// The old process is told to stop while it waits for the new one to say that it is
// well.
func TestStopWhileNewHangs(t *testing.T) {
	h := newHouse(t, oneListener(make(chan net.Addr, 9)))
	h.opts = func(int) []Option { return []Option{Probation(0)} }
	g := h.first()
	slow := &slowDrainer{begun: make(chan *serve.Drain, 9), notice: make(chan struct{}, 9)}
	next := g.toDrain(slow, slow.begun)
	next.hang()
	slow.notice <- struct{}{}
	for asked := make(chan bool, 1); ; {
		if g.post(func() { asked <- g.m.drain == over }); receive(t, asked, "the loop") {
			break
		}
	}
	g.askStop()
	receive(t, g.Done(), "Done")
	next.die()
}

// A new process that is not ready in time can't be killed: the caller that waits is
// told so, and the next upgrade begins when it is gone.
func TestKillFailsBeforeReady(t *testing.T) {
	h := newHouse(t, func(g *generation) error {
		if g.n == 2 {
			g.house.born <- g
			<-g.dying
			return errors.New("killed")
		}
		return g.Ready()
	})
	h.opts = func(n int) []Option {
		if n == 1 {
			return []Option{ReadyTimeout(2 * time.Second), Probation(0)}
		}
		return nil
	}
	g := h.first()
	h.unkillable.Store(true)
	done := g.upgrade()
	next := h.next()
	err := receive(t, done, "Upgrade")
	wantErr(t, err, ErrReadyTimeout)
	if !strings.Contains(err.Error(), "can't be killed: operation not permitted") {
		t.Errorf("the error is %q, want one that says that the new process can't be killed", err)
	}
	g.await(upgrading)
	g.post(func() { g.opt.readyTimeout = limit })
	h.unkillable.Store(false)
	again := g.upgrade()
	next.die()
	<-h.born // its main has returned
	h.next()
	if err := receive(t, again, "the next Upgrade"); err != nil {
		t.Errorf("the next upgrade: %v", err)
	}
}

// A new process that hangs after it was ready can't be killed: a process must accept,
// which is the old one.
func TestKillFailsAfterReady(t *testing.T) {
	h := newHouse(t, func(g *generation) error {
		if g.n == 1 {
			g.m.limits.pong = soon
			return g.Ready()
		}
		return g.hangs()
	})
	h.opts = func(int) []Option { return []Option{Probation(0)} }
	g := h.first()
	h.unkillable.Store(true)
	done := g.upgrade()
	next := h.next()
	err := receive(t, done, "Upgrade")
	wantErr(t, err, ErrRolledBack)
	if !strings.Contains(err.Error(), "can't be killed: operation not permitted") {
		t.Errorf("the error is %q, want one that says that the new process can't be killed", err)
	}
	g.await(serving)
	next.die()
	g.askStop()
	receive(t, g.Done(), "Done")
}

// The new process has read go, and its accepting does not arrive, since the channel
// broke: the old one, which has never stopped to accept, has it killed.
func TestAcceptingIsLost(t *testing.T) {
	addrs := make(chan net.Addr, 9)
	h := newHouse(t, oneListenerThen(addrs, func(g *generation) error {
		if err := g.handshake(); err != nil {
			return err
		}
		g.parent.ch.Socket().CloseWrite()
		ready := make(chan error, 1)
		g.post(func() { ready <- g.m.onReady() })
		return <-ready
	}))
	g := h.first()
	done := g.upgrade()
	h.next()
	wantErr(t, receive(t, done, "Upgrade"), ErrProtocol)
	g.await(serving)
	if got := ask(t, <-addrs); got != "1" {
		t.Errorf("generation %s answers, want 1", got)
	}
}

// The channel ends while the old process lives: the new one does not begin to accept,
// or serves on, but takes the old one for alive until it is dead.
func TestOldLivesAfterTheChannelHasEnded(t *testing.T) {
	h := newHouse(t, oneListener(make(chan net.Addr, 9)))
	h.opts = func(int) []Option { return []Option{Probation(time.Hour)} }
	g := h.first()
	next, _ := g.toProbation()
	g.post(func() { g.child.ch.Socket().CloseWrite() })
	receive(t, next.parent.deaf, "the end of the channel")
	again := next.upgrade()
	next.await(serving)
	select {
	case <-next.parent.gone:
		t.Error("the old process is taken for dead")
	default:
	}
	g.die()
	third := h.next()
	if third.err != nil {
		t.Fatal(third.err)
	}
	next.await(standingBy)
	next.post(func() { next.m.onProbationOver(evProbationOver{id: next.m.child.id}) })
	if err := receive(t, again, "the upgrade that has waited for the old process's end"); err != nil {
		t.Error(err)
	}
}

// The old process is dead, and a child of its that hangs in execve still has its end of
// the channel: the new one learns of the death all the same, before and after it
// accepts.
func TestOldIsDeadThoughTheChannelIsOpen(t *testing.T) {
	for _, ready := range []bool{false, true} {
		t.Run(fmt.Sprintf("new is ready %v", ready), func(t *testing.T) {
			goOn := make(chan struct{})
			reached := make(chan *generation, 1)
			addrs := make(chan net.Addr, 9)
			h := newHouse(t, func(g *generation) error {
				if g.n == 2 && !ready {
					reached <- g
					<-goOn
				}
				return oneListener(addrs)(g)
			})
			h.opts = func(int) []Option { return []Option{Probation(time.Hour)} }
			g := h.first()
			addr := <-addrs
			g.upgrade()
			var next *generation
			if ready {
				next = h.next()
				g.await(standingBy)
			} else {
				next = receive(t, reached, "the new process")
			}
			var theirs *os.File
			until(t, "the old process to know the new one", func() bool {
				g.ask(func() {
					if g.child != nil {
						theirs, _ = g.child.ch.Socket().File()
					}
				})
				return theirs != nil
			})
			defer theirs.Close()
			g.die()
			receive(t, next.parent.gone, "the new process to see that the old one is dead")
			close(goOn)
			askUntil(t, addr, "2")
			next.askStop()
			receive(t, next.Done(), "Done")
		})
	}
}

func TestWhoServesAfterNewHasEnded(t *testing.T) {
	const nobody, unknown = "no process serves", "could not say"
	for name, tc := range map[string]struct {
		c    childState
		want string
	}{
		"it was the only one":    {childState{}, nobody},
		"it was told to stop":    {childState{orderly: true}, ""},
		"it has a successor":     {childState{handedOver: true}, ""},
		"nothing is heard of it": {childState{deaf: true}, unknown},
	} {
		t.Run(name, func(t *testing.T) {
			var log logtest.Buffer
			u := &Upgrader{log: slog.New(slog.NewTextHandler(&log, nil))}
			u.m.do = performer{u}
			u.m.reportDeath(tc.c, &UpgradeError{})
			if got := log.String(); tc.want == "" && got != "" || !strings.Contains(got, tc.want) {
				t.Errorf("logged %q, want %q", got, tc.want)
			}
		})
	}
}

// A new process that was late could not be killed, has accepted after all, and hangs
// then: it can't be killed a second time, and a process must accept.
func TestKillFailsTwice(t *testing.T) {
	went, accept := make(chan struct{}), make(chan struct{})
	h := newHouse(t, func(g *generation) error {
		if g.n == 1 {
			g.m.limits.pong = soon
			return g.Ready()
		}
		if err := g.handshake(); err != nil {
			return err
		}
		close(went)
		<-accept
		ready := make(chan error, 1)
		g.post(func() {
			ready <- g.m.onReady()
			<-g.dying
		})
		return <-ready
	})
	h.opts = func(int) []Option { return []Option{Probation(0)} }
	g := h.first()
	h.unkillable.Store(true)
	done := g.upgrade()
	receive(t, went, "go")
	g.post(func() { g.m.kill(ErrReadyTimeout) }) // as onLate does
	wantErr(t, receive(t, done, "Upgrade"), ErrReadyTimeout)
	close(accept)
	next := h.next()
	g.await(serving)
	g.post(func() {
		if g.m.child.stage != leaving {
			t.Error("it was not rolled back")
		}
	})
	next.die()
	g.askStop()
	receive(t, g.Done(), "Done")
}

// A new process accepts, and has told the old one so, before it says anything in the
// log: a log that is waited for holds up neither.
func TestAcceptingComesBeforeTheLog(t *testing.T) {
	said, goOn := make(chan struct{}), make(chan struct{})
	addrs := make(chan net.Addr, 9)
	h := newHouse(t, func(g *generation) error {
		l, err := g.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		g.serve(l)
		addrs <- l.Addr()
		if g.n == 2 { // this log is not queued
			g.log = slog.New(&holdingHandler{slog.DiscardHandler, "grace: serving", said, goOn})
		}
		return g.Ready()
	})
	h.opts = func(int) []Option { return []Option{Probation(time.Hour)} }
	g := h.first()
	g.upgrade()
	defer close(goOn)
	receive(t, said, "the line of the new one")
	g.await(standingBy)
	if got := ask(t, <-addrs); got != "2" {
		t.Errorf("generation %s answers, want 2", got)
	}
}

// A holdingHandler says when a line comes, and takes it when it is told to go on.
type holdingHandler struct {
	slog.Handler
	line       string
	said, goOn chan struct{}
}

func (h *holdingHandler) Enabled(context.Context, slog.Level) bool { return true }

func (h *holdingHandler) Handle(_ context.Context, r slog.Record) error {
	if r.Message == h.line {
		close(h.said)
		<-h.goOn
	}
	return nil
}
