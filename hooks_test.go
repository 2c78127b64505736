//go:build unix

package grace

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/gate"
	"github.com/julofinance/grace/v3/internal/sockets"
	"github.com/julofinance/grace/v3/internal/testing/logtest"
)

// What a program does to the library by mistake, and gets an answer to.

func panics(context.Context) error { panic("boom") }

// TestHookThatPanics: a function that is asked whether all is well and panics has
// said no, in the process that serves, too; the log has the stack.
func TestHookThatPanics(t *testing.T) {
	has := func(t *testing.T, err error, want string) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one that has %q", err, want)
		}
	}
	t.Run("BeforeUpgrade", func(t *testing.T) {
		addrs := make(chan net.Addr, 9)
		h := newHouse(t, oneListener(addrs))
		var log logtest.Buffer
		h.opts = func(int) []Option {
			return []Option{BeforeUpgrade(panics), Logger(slog.New(slog.NewTextHandler(&log, nil)))}
		}
		g := h.first()
		for range 2 { // it is not taken for one that still runs
			err := receive(t, g.upgrade(), "Upgrade")
			wantErr(t, err, ErrRefused)
			has(t, err, "BeforeUpgrade has panicked: boom")
		}
		if got := ask(t, <-addrs); got != "1" {
			t.Errorf("generation %s answers, want 1", got)
		}
		if got := strings.Join(log.Lines(), "\n"); !strings.Contains(got, "has panicked") || !strings.Contains(got, "hooks_test.go") {
			t.Errorf("the log does not say where it has panicked:\n%s", got)
		}
	})
	t.Run("ReadyCheck", func(t *testing.T) {
		addrs := make(chan net.Addr, 9)
		h := newHouse(t, oneListener(addrs))
		h.opts = func(n int) []Option {
			if n == 1 {
				return nil
			}
			return []Option{ReadyCheck(panics)}
		}
		g := h.first()
		err := receive(t, g.upgrade(), "Upgrade")
		wantErr(t, err, ErrExited)
		has(t, err, "ReadyCheck has panicked: boom")
	})
	t.Run("Watchdog", func(t *testing.T) {
		u, _ := newSolo(t, Watchdog(panics))
		if u.well(time.Minute) {
			t.Error("systemd is told that the process is well")
		}
		u.askStop()
		receive(t, u.Done(), "Done")
	})
}

// TestLongNames: the longest name that AddFile takes is handed over, whatever its
// bytes are; a longer one is refused there, and not by every upgrade.
func TestLongNames(t *testing.T) {
	longest := strings.Repeat("\xff", maxExtraName)
	serve := oneListener(make(chan net.Addr, 9))
	h := newHouse(t, func(g *generation) error {
		f, err := g.File(longest)
		if err != nil {
			return err
		}
		if g.n == 1 {
			if f, err = os.Open(os.DevNull); err != nil {
				return err
			}
			err := g.AddFile(longest+"x", f)
			if err == nil || !strings.HasPrefix(err.Error(), "grace: add file ") || !strings.Contains(err.Error(), "4097 bytes") || len(err.Error()) > 400 {
				t.Errorf("AddFile of a name that is too long: %v", err)
			}
			if err := g.AddFile(longest, f); err != nil {
				return err
			}
		} else if f == nil {
			t.Error("the file was not handed over")
		}
		t.Cleanup(func() { f.Close() })
		return serve(g)
	})
	g := h.first()
	if err := receive(t, g.upgrade(), "Upgrade"); err != nil {
		t.Error(err)
	}
}

// TestAddFileAfterStop: the error names what was called.
func TestAddFileAfterStop(t *testing.T) {
	u, _ := newSolo(t)
	u.askStop()
	receive(t, u.Done(), "Done")
	err := u.AddFile("x", os.Stdin)
	wantErr(t, err, ErrStopped)
	if want := `grace: add file "x": this process is stopping`; err.Error() != want {
		t.Errorf("got %q, want %q", err, want)
	}
}

// TestNewAfterDone: when Done is closed, New makes another Upgrader at once.
func TestNewAfterDone(t *testing.T) {
	for range 50 {
		u, err := New(NoSignals(), Logger(nil))
		if err != nil {
			t.Fatal(err)
		}
		u.askStop()
		receive(t, u.Done(), "Done")
	}
}

// TestNewBesideANewProcess: Done is closed, but a new process is looked after: New
// does not wait for its end.
func TestNewBesideANewProcess(t *testing.T) {
	u := &Upgrader{done: make(chan struct{}), over: make(chan struct{}), events: make(chan func())}
	close(u.done)
	go func() { (<-u.events)() }() // once
	i := use{by: u}
	if i.take() {
		t.Error("two Upgraders")
	}
	close(u.over)
	if !i.take() {
		t.Error("none, and the one before is over")
	}
}

// TestUpgradeWithoutContext: no upgrade begins.
func TestUpgradeWithoutContext(t *testing.T) {
	u, _ := newSolo(t)
	var none context.Context
	if err := u.Upgrade(none); err == nil || !strings.Contains(err.Error(), "the context is nil") {
		t.Errorf("Upgrade(nil): %v", err)
	}
	u.askStop()
	receive(t, u.Done(), "Done")
}

// TestListenAfterReady: in a later generation the address is the old process's, and
// the error says so.
func TestListenAfterReady(t *testing.T) {
	addrs := make(chan net.Addr, 9)
	serve := oneListener(addrs)
	h := newHouse(t, serve)
	h.opts = func(int) []Option { return []Option{Probation(time.Hour)} }
	g := h.first()
	late, err := g.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	next, _ := g.toProbation()
	l, err := next.Listen("tcp", late.Addr().String())
	if l != nil || !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), "call Listen before Ready") {
		t.Errorf("Listen after Ready: %v, %v", l, err)
	}
	g.askStop()
	receive(t, next.Done(), "Done of the new process")
	receive(t, g.Done(), "Done of the old process")
}

// TestRawReadsWait: a goroutine that reads packets through SyscallConn waits at the
// gate as well, also when the gate is shut while the goroutine waits inside.
func TestRawReadsWait(t *testing.T) {
	u, _ := newSolo(t)
	p, err := u.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	raw, err := p.(*sockets.UDPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	type result struct {
		text string
		err  error
	}
	read := func() <-chan result {
		c := make(chan result, 1)
		go func() {
			b := make([]byte, 100)
			var n int
			err := raw.Read(func(fd uintptr) bool {
				var rerr error
				n, _, rerr = syscall.Recvfrom(int(fd), b, 0)
				return rerr != syscall.EAGAIN
			})
			c <- result{string(b[:max(n, 0)]), err}
		}()
		return c
	}
	send := func(text string) {
		t.Helper()
		c, err := net.Dial("udp", p.LocalAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, text); err != nil {
			t.Fatal(err)
		}
	}
	g := p.(*sockets.UDPConn).Gate
	got := read()
	send("early") // not ready yet
	for range 20 {
		select {
		case r := <-got:
			t.Fatalf("before Ready %+v was read", r)
		case <-time.After(time.Millisecond):
		}
	}
	if err := u.Ready(); err != nil {
		t.Fatal(err)
	}
	if r := receive(t, got, "a packet"); r.text != "early" || r.err != nil {
		t.Errorf("read %+v", r)
	}
	got = read()
	until(t, "a goroutine inside", g.IsOccupied)
	g.Set(gate.Shut)
	until(t, "no goroutine inside", func() bool { return !g.IsOccupied() })
	send("late")
	for range 20 {
		select {
		case r := <-got:
			t.Fatalf("after the hand-over %+v was read", r)
		case <-time.After(time.Millisecond):
		}
	}
	g.Set(gate.Open)
	if r := receive(t, got, "a packet"); r.text != "late" || r.err != nil {
		t.Errorf("read %+v", r)
	}
	got = read()
	u.askStop()
	if r := receive(t, got, "the end"); !errors.Is(r.err, net.ErrClosed) {
		t.Errorf("at the end: %+v", r)
	}
	receive(t, u.Done(), "Done")
}
