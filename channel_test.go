//go:build linux

package grace

import (
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/fd"
	"golang.org/x/sys/unix"
)

// jam lets c have more to write than the kernel takes while nobody reads.
func jam(c *channel) {
	for left := 0; left < 1<<20; { // more than a socket's buffer
		c.send(message{typ: '?', payload: make([]byte, 64<<10)})
		c.mu.Lock()
		left = 0
		for _, o := range c.queue {
			left += len(o.frame)
		}
		c.mu.Unlock()
	}
}

// A message that can't be written in time is taken back, if nothing of it is; and
// one that is begun becomes whole, or the next could not be read.
func TestChannelSendsWithin(t *testing.T) {
	c, other := pair(t)
	reading(c)
	sent := make(chan error, 9)
	tell := func(err error) { sent <- err }
	r, w := pipes(t, 1)
	large := message{typ: '1', payload: make([]byte, maxPayload), fds: w}
	for cut := false; !cut; { // the first of them may fit
		c.sendWithin(soon, large, tell)
		err := receive(t, sent, "the first message")
		cut = errors.Is(err, errCutShort)
		if err != nil && !cut {
			t.Fatalf("a message that is written in part: got %v, want %v", err, errCutShort)
		}
	}
	c.sendWithin(soon, message{typ: '2'}, tell)
	if err := receive(t, sent, "the second message"); !errors.Is(err, errNotSent) {
		t.Errorf("a message behind it: got %v, want %v", err, errNotSent)
	}
	c.sendThen(message{typ: '3'}, tell)
	fd.CloseAll(w)
	messages, _ := reading(newChannel(other))
	for {
		m := receive(t, messages, "the messages")
		if m.typ == '3' {
			break
		}
		if m.typ != '1' || len(m.payload) != maxPayload || len(m.fds) != 1 {
			t.Fatalf("got a message %q of %d bytes with %d descriptors", m.typ, len(m.payload), len(m.fds))
		}
		fd.CloseAll(m.fds)
	}
	if err := receive(t, sent, "the third message"); err != nil {
		t.Errorf("a message without a limit: %v", err)
	}
	r[0].SetReadDeadline(time.Now().Add(limit))
	if _, err := r[0].Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("a descriptor is left: %v", err)
	}
}

// A channel that was read to its end is not closed: for the other process its
// close is the end of this one.
func TestChannelStaysOpen(t *testing.T) {
	c, other := pair(t)
	_, ended := reading(c)
	if _, err := other.Write([]byte("this is no message of ours")); err != nil {
		t.Fatal(err)
	}
	if e := receive(t, ended, "the end"); !errors.Is(e.err, ErrProtocol) {
		t.Fatalf("the channel ended with %v, want %v", e.err, ErrProtocol)
	}
	c.send(message{typ: 'X'})
	if m, err := newChannel(other).next(); err != nil || m.typ != 'X' {
		t.Errorf("the other end reads %q, error %v; want a message", m.typ, err)
	}
}

// The end of a process is seen by its pidfd, and without one, before it is reaped.
func TestLife(t *testing.T) {
	for name, change := range map[string]func(l *life){
		"pidfd":            func(*life) {},
		"no pidfd":         func(l *life) { unix.Close(l.pidfd); l.pidfd = -1; l.start, _ = startOf(l.pid) },
		"a stranger's pid": func(l *life) { unix.Close(l.pidfd); l.pidfd = -1; l.start = 1 },
	} {
		t.Run(name, func(t *testing.T) {
			path, err := exec.LookPath("sleep")
			if err != nil {
				t.Skip(err)
			}
			l, err := command{path: path, argv: []string{"sleep", "1000"}}.start(t.Context(), nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			c := l.(*forked)
			change(c.life)
			if over := c.life.over(); over != (name == "a stranger's pid") {
				t.Errorf("a process that lives is over: %v", over)
			}
			unix.Kill(c.pid(), unix.SIGKILL)
			dead := make(chan bool, 1)
			go func() { dead <- c.life.await(nil) }()
			receive(t, dead, "its end") // a zombie
			if _, err := c.wait(); err != nil {
				t.Errorf("wait: %v", err)
			}
			if err := c.kill(); !errors.Is(err, os.ErrProcessDone) {
				t.Errorf("kill of a dead process: %v", err)
			}
		})
	}
}

// The program reaps all its children itself: an error of wait is not their end.
func TestWaitOfReapedChild(t *testing.T) {
	path, err := exec.LookPath("sleep")
	if err != nil {
		t.Skip(err)
	}
	p, err := command{path: path, argv: []string{"sleep", "1000"}}.start(t.Context(), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	c := p.(*forked)
	if p, err := c.process(); err == nil {
		p.Release() // from here on its Wait fails
	}
	ended := make(chan error, 1)
	go func() { _, err := c.wait(); ended <- err }()
	select {
	case err := <-ended:
		t.Errorf("a process that lives has ended: %v", err)
	case <-time.After(soon):
	}
	if err := c.kill(); err != nil {
		t.Error(err)
	}
	if err := receive(t, ended, "its end"); err == nil {
		t.Error("how it ended can't be known")
	}
	unix.Wait4(c.pid(), nil, 0, nil)
}

// The mover is stopped while a message is being written: its connections come
// back, and new does not get them.
func TestMoverStopsWhileItWrites(t *testing.T) {
	p := newCouple(t, saysSide)
	p.runOld()
	c, r := p.ask()
	receive(t, p.old.seen, "the connection")
	jam(p.old.ch)
	d, done := p.drain()
	p.awaitMoves(1)
	p.mover.stop()
	p.runNew()
	receive(t, p.old.seen, "the connection to come back")
	d.cancel()
	receive(t, done, "the drain to end")
	wantAnswer(t, c, r, "", "old")
	if n := p.mover.count(); n != 0 {
		t.Errorf("moved %d connections, want none", n)
	}
}

// awaitWritten waits until a connection is on its way, with nothing left to write.
func (p *couple) awaitWritten() {
	p.t.Helper()
	p.await("a connection to be sent", func() bool {
		p.mover.mu.Lock()
		defer p.mover.mu.Unlock()
		for _, c := range p.mover.sent {
			return !c.at.IsZero()
		}
		return false
	})
}

// Old serves again what new may have: not before new was told, while both live.
func TestNewIsToldBeforeOldServes(t *testing.T) {
	p := newCouple(t, saysSide)
	p.runOld()
	c, r := p.ask()
	receive(t, p.old.seen, "the connection")
	d, done := p.drain()
	p.awaitWritten()
	jam(p.old.ch) // the verdict comes behind that
	before := p.old.l.live.all()
	p.mover.stop()
	if after := p.old.l.live.all(); len(before) != 1 || len(after) != 1 || before[0] != after[0] {
		t.Error("old serves a connection, and new was not told")
	}
	p.runNew()
	receive(t, p.old.seen, "the connection to come back")
	d.cancel()
	receive(t, done, "the drain to end")
	wantAnswer(t, c, r, "", "old")
}

// New does not read, so that it can't be told: old serves on all the same, reads
// half a request, and dies. New does not take the rest for a request.
func TestNewKnowsWhatOldHasTakenBack(t *testing.T) {
	p := newCouple(t, saysSide)
	p.mover.patience = soon
	p.runOld()
	c, _ := p.ask()
	receive(t, p.old.seen, "the connection")
	p.drain()
	p.awaitWritten()
	jam(p.old.ch)
	back := trackOf(receive(t, p.old.seen, "the connection to come back"))
	if _, err := io.WriteString(c, "GET / HT"); err != nil {
		t.Fatal(err)
	}
	p.await("old to read", func() bool {
		back.mu.Lock()
		defer back.mu.Unlock()
		return back.touched
	})
	p.old.ch.close() // as the kernel does when old dies
	served := make(chan int, 1)
	p.new.ch.run(func(m message) {
		if m.typ == msgConns {
			p.recv.onConns(m)
			if len(p.recv.held) != 1 {
				t.Errorf("new was offered %d connections, want 1", len(p.recv.held))
			}
		}
	}, func(error) {
		p.recv.onEnd()
		served <- len(p.new.l.live.all())
	})
	if n := receive(t, served, "old's end to be seen"); n != 0 {
		t.Error("new serves a connection that old has read a part of a request from")
	}
}

// New does not read, and the message with the connection does not fit: it is not
// held for longer than patience.
func TestMessageThatCannotBeWritten(t *testing.T) {
	p := newCouple(t, func(string) http.Handler { return saysSide("old") })
	stuck := make(chan error, 1)
	p.mover.patience = soon
	p.mover.stuck = func(err error) { stuck <- err }
	p.runOld()
	c, r := p.ask()
	receive(t, p.old.seen, "the connection")
	jam(p.old.ch)
	p.drain()
	back := trackOf(receive(t, p.old.seen, "the connection to come back"))
	if err := receive(t, stuck, "the reason"); !errors.Is(err, errNotSent) {
		t.Errorf("the reason is %v, want %v", err, errNotSent)
	}
	back.mu.Lock()
	lent := back.lent
	back.mu.Unlock()
	if lent {
		t.Error("new may have a copy of what was never sent")
	}
	wantAnswer(t, c, r, "", "old")
}
