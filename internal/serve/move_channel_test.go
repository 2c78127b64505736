//go:build linux

package serve

import (
	"errors"
	"io"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/control"
	"github.com/julofinance/grace/v3/internal/sockets"
	"github.com/julofinance/grace/v3/internal/testing/wait"
)

// jam makes c have more to write than the kernel takes as long as the other end does not
// read.
func jam(c *control.Channel) {
	for queued := 0; queued < 1<<20; { // more than a socket's buffer
		m := control.Message{Type: '?', Payload: make([]byte, 64<<10)}
		var taken atomic.Bool
		c.SendThen(m, func(error) { taken.Store(true) })
		if !taken.Load() {
			queued += len(m.Payload)
		}
	}
}

// The mover is stopped while a message is being written: its connections come back, and
// the new process does not get them.
func TestMoverStopsWhileItWrites(t *testing.T) {
	p := newCouple(t, saysSide)
	p.runOld()
	c, r := p.ask()
	wait.For(t, p.old.seen, "the connection")
	jam(p.old.ch)
	d, done := p.drain()
	p.awaitMoves(1)
	p.mover.Stop()
	p.runNew()
	wait.For(t, p.old.seen, "the connection to come back")
	d.cancel()
	wait.For(t, done, "the drain to end")
	wantAnswer(t, c, r, "", "old")
	if n := p.mover.Count(); n != 0 {
		t.Errorf("moved %d connections, want none", n)
	}
}

// awaitWritten waits until a connection is on its way, with nothing left to write.
func (p *couple) awaitWritten() {
	p.t.Helper()
	p.await("a connection to be sent", func() bool {
		_, written := p.mover.Pending()
		return written > 0
	})
}

// The old process serves again what the new one may have: not before the new one was
// told, while both live.
func TestNewIsToldBeforeOldServes(t *testing.T) {
	p := newCouple(t, saysSide)
	p.runOld()
	c, r := p.ask()
	wait.For(t, p.old.seen, "the connection")
	d, done := p.drain()
	p.awaitWritten()
	jam(p.old.ch) // the verdict comes behind that
	before := p.old.l.Live.All()
	p.mover.Stop()
	if after := p.old.l.Live.All(); len(before) != 1 || len(after) != 1 || before[0] != after[0] {
		t.Error("the old process serves a connection, and the new one was not told")
	}
	p.runNew()
	wait.For(t, p.old.seen, "the connection to come back")
	d.cancel()
	wait.For(t, done, "the drain to end")
	wantAnswer(t, c, r, "", "old")
}

// The new process does not read, so that it can't be told: the old one serves on all
// the same, reads half a request, and dies. The new one does not take the rest for a
// request.
func TestNewKnowsWhatOldHasTakenBack(t *testing.T) {
	p := newCouple(t, saysSide)
	p.mover.Patience = 50 * time.Millisecond
	p.runOld()
	c, _ := p.ask()
	wait.For(t, p.old.seen, "the connection")
	p.drain()
	p.awaitWritten()
	jam(p.old.ch)
	back := sockets.TrackOf(wait.For(t, p.old.seen, "the connection to come back"))
	if _, err := io.WriteString(c, "GET / HT"); err != nil {
		t.Fatal(err)
	}
	p.await("the old process to read", func() bool {
		return back.State().Touched
	})
	p.old.ch.Close() // as the kernel does when the old process dies
	served := make(chan int, 1)
	p.new.ch.Run(func(m control.Message) {
		if m.Type == sockets.MsgConns {
			p.recv.OnConns(m)
			if len(p.recv.Held) != 1 {
				t.Errorf("the new process was offered %d connections, want 1", len(p.recv.Held))
			}
		}
	}, func(error) {
		p.recv.OnEnd()
		served <- len(p.new.l.Live.All())
	})
	if n := wait.For(t, served, "the old process's end to be seen"); n != 0 {
		t.Error("the new process serves a connection that the old one has read a part of a request from")
	}
}

// The new process does not read, and the message with the connection does not fit: it
// is not held for longer than patience.
func TestMessageThatCannotBeWritten(t *testing.T) {
	p := newCouple(t, func(string) http.Handler { return saysSide("old") })
	stuck := make(chan error, 1)
	p.mover.Patience = 50 * time.Millisecond
	p.mover.Stuck = func(err error) { stuck <- err }
	p.runOld()
	c, r := p.ask()
	wait.For(t, p.old.seen, "the connection")
	jam(p.old.ch)
	p.drain()
	back := sockets.TrackOf(wait.For(t, p.old.seen, "the connection to come back"))
	if err := wait.For(t, stuck, "the reason"); !errors.Is(err, control.ErrNotSent) {
		t.Errorf("the reason is %v, want %v", err, control.ErrNotSent)
	}
	if back.State().Lent {
		t.Error("the new process may have a copy of what was never sent")
	}
	wantAnswer(t, c, r, "", "old")
}
