//go:build unix

package grace

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/control"
	"github.com/julofinance/grace/v3/internal/testing/fdtest"
	"golang.org/x/sys/unix"
)

// oneListener is a main that serves tcp on port 0.
func oneListener(addrs chan<- net.Addr) func(*generation) error {
	return oneListenerThen(addrs, func(g *generation) error { return g.Ready() })
}

// oneListenerThen is oneListener, and calls then in place of Ready in all generations but the
// first.
func oneListenerThen(addrs chan<- net.Addr, then func(*generation) error) func(*generation) error {
	return func(g *generation) error {
		l, err := g.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		g.serve(l)
		addrs <- l.Addr()
		if g.n > 1 {
			return then(g)
		}
		return g.Ready()
	}
}

func TestUpgradeKeepsSocketsOverThreeGenerations(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	type addrs struct{ tcp, unix, udp string }
	seen := make(chan addrs, 3)
	h := newHouse(t, func(g *generation) error {
		tcp, err := g.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		un, err := g.Listen("unix", path)
		if err != nil {
			return err
		}
		udp, err := g.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		g.serve(tcp)
		g.serve(un)
		go func() {
			defer udp.Close()
			b := make([]byte, 16)
			for {
				n, from, err := udp.ReadFrom(b)
				if err != nil {
					return
				}
				udp.WriteTo(append(b[:n:n], byte('0'+g.n)), from)
			}
		}()
		seen <- addrs{tcp.Addr().String(), un.Addr().String(), udp.LocalAddr().String()}
		return g.Ready()
	})
	h.opts = func(int) []Option { return []Option{Probation(0), PIDFile(filepath.Join(dir, "pid"))} }
	g := h.first()
	first := <-seen
	for n := 1; ; n++ {
		if g.err != nil {
			t.Fatalf("generation %d: %v", n, g.err)
		}
		want := string(rune('0' + n))
		for _, a := range []net.Addr{strAddr{"tcp", first.tcp}, strAddr{"unix", path}} {
			if got := ask(t, a); got != want {
				t.Errorf("%v: generation %s answers, want %s", a, got, want)
			}
		}
		c, err := net.Dial("udp", first.udp)
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(limit))
		c.Write([]byte("x"))
		b := make([]byte, 16)
		k, err := c.Read(b)
		c.Close()
		if err != nil || string(b[:k]) != "x"+want {
			t.Errorf("udp: got %q and error %v, want %q", b[:k], err, "x"+want)
		}
		if g.Generation() != n || g.HasParent() != (n > 1) {
			t.Errorf("Generation %d, HasParent %v in generation %d", g.Generation(), g.HasParent(), n)
		}
		if n == 3 {
			break
		}
		done := g.upgrade()
		next := h.next()
		if err := receive(t, done, "Upgrade"); err != nil {
			t.Fatalf("Upgrade: %v", err)
		}
		receive(t, g.Done(), "Done of the old one")
		if err := next.WaitForParent(t.Context()); err != nil {
			t.Errorf("WaitForParent: %v", err)
		}
		if got := <-seen; got != first {
			t.Errorf("generation %d listens on %v, want %v", n+1, got, first)
		}
		g = next
	}
	g.askStop()
	receive(t, g.Done(), "Done of the last one")
	for _, p := range []string{path, filepath.Join(dir, "pid")} {
		if _, err := os.Lstat(p); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left after the last stop (%v)", p, err)
		}
	}
}

type strAddr struct{ network, addr string }

func (a strAddr) Network() string { return a.network }
func (a strAddr) String() string  { return a.addr }

func TestUpgradeFails(t *testing.T) {
	boom := errors.New("boom")
	for name, tc := range map[string]struct {
		opts   []Option
		tamper func(*handover)
		main   func(*generation) error // of generation 2; nil: it never gets there
		noNew  bool
		want   error
		text   string
	}{
		"refused": {
			opts:  []Option{BeforeUpgrade(func(context.Context) error { return boom })},
			noNew: true, want: ErrRefused, text: "boom",
		},
		"no such file": {
			opts:  []Option{Executable("/nonexistent/server")},
			noNew: true, want: ErrStart, text: "/nonexistent/server",
		},
		"exits": {
			main: func(g *generation) error { return boom },
			want: ErrExited, text: "pid 100002",
		},
		"hangs": {
			opts: []Option{ReadyTimeout(2 * time.Second)}, // the start is part of it
			main: func(g *generation) error { <-g.ended; return boom },
			want: ErrReadyTimeout, text: "killed after 2s",
		},
		"garbage": {
			main: func(g *generation) error { g.parent.ready.WriteString("hello\n"); <-g.ended; return boom },
			want: ErrProtocol, text: `"hello\n"`,
		},
		"hangs up": {
			main: func(g *generation) error { g.parent.ready.Close(); <-g.ended; return boom },
			want: ErrProtocol,
		},
		"claims that are no records": {
			main: func(g *generation) error {
				g.parent.ch.Send(control.Message{Type: msgClaims, Payload: []byte("{")})
				<-g.ended
				return boom
			},
			want: ErrProtocol, text: "message 'R'",
		},
		"readiness check": {
			main: func(g *generation) error {
				g.opt.readyCheck = func(context.Context) error { return boom }
				return g.Ready()
			},
			want: ErrExited, text: "ReadyCheck: boom",
		},
		"other version": {
			tamper: func(h *handover) {
				h.version++
				unix.Close(h.control) // New leaves it, and the process ends
				unix.Close(h.ready)
			},
			want: ErrExited,
		},
		"count does not fit": {
			tamper: func(h *handover) { unix.Close(h.first); h.count = 0 },
			want:   ErrExited,
		},
	} {
		t.Run(name, func(t *testing.T) {
			addrs := make(chan net.Addr, 9)
			one := oneListener(addrs)
			h := newHouse(t, func(g *generation) error {
				if g.n == 1 {
					return one(g)
				}
				return tc.main(g)
			})
			h.opts = func(n int) []Option {
				if n == 1 {
					return tc.opts
				}
				return nil
			}
			h.tamper = func(n int, ho *handover) {
				if tc.tamper != nil {
					tc.tamper(ho)
				}
			}
			g := h.first()
			err := receive(t, g.upgrade(), "Upgrade")
			if tc.tamper != nil && errors.Is(err, ErrProtocol) {
				tc.want = ErrProtocol // New hung up, and the old process was faster than the exit
			}
			wantErr(t, err, tc.want)
			var ue *UpgradeError
			if !errors.As(err, &ue) || ue.Reason != tc.want || (ue.Pid == 0) != tc.noNew {
				t.Errorf("got %#v, want an UpgradeError with reason %q", err, tc.want)
			}
			if !strings.Contains(err.Error(), tc.text) || strings.Count(err.Error(), "grace: ") == 0 || !strings.HasPrefix(err.Error(), "grace: ") {
				t.Errorf("error text %q, want one that has %q", err, tc.text)
			}
			if got := ask(t, <-addrs); got != "1" {
				t.Errorf("after the failure generation %s answers, want 1", got)
			}
			g.askStop()
			receive(t, g.Done(), "Done")
		})
	}
}

func TestRollBackInProbation(t *testing.T) {
	addrs := make(chan net.Addr, 9)
	h := newHouse(t, oneListener(addrs))
	pid := filepath.Join(t.TempDir(), "pid")
	h.opts = func(int) []Option { return []Option{Probation(time.Hour), PIDFile(pid)} }
	g := h.first()
	addr := <-addrs
	for n := 2; n < 5; n++ { // it can be tried again and again
		next, done := g.toProbation()
		askUntil(t, addr, string(rune('0'+n)))
		next.die()
		err := receive(t, done, "Upgrade")
		wantErr(t, err, ErrRolledBack)
		if got := ask(t, addr); got != "1" {
			t.Errorf("rolled back: generation %s answers, want 1", got)
		}
		if !g.Upgrader.pid.names() {
			t.Error("rolled back, and the PID file is not the old one's again")
		}
	}
	g.askStop()
	receive(t, g.Done(), "Done")
}

func TestNewGivesUpInProbation(t *testing.T) {
	addrs := make(chan net.Addr, 9)
	h := newHouse(t, oneListener(addrs))
	h.opts = func(int) []Option { return []Option{Probation(time.Hour)} }
	g := h.first()
	addr := <-addrs
	done := g.upgrade()
	next := h.next()
	next.Abort()
	wantErr(t, receive(t, done, "Upgrade"), ErrRolledBack)
	receive(t, next.Done(), "Done of the new one")
	if got := ask(t, addr); got != "1" {
		t.Errorf("generation %s answers, want 1", got)
	}
}

func TestStopInProbationStopsBoth(t *testing.T) {
	for name, stop := range map[string]func(old, new *generation){
		"told to old": func(old, new *generation) { old.askStop() },
		"told to new": func(old, new *generation) { new.askStop() },
	} {
		t.Run(name, func(t *testing.T) {
			addrs := make(chan net.Addr, 9)
			h := newHouse(t, oneListener(addrs))
			h.opts = func(int) []Option { return []Option{Probation(time.Hour)} }
			old := h.first()
			next, done := old.toProbation()
			stop(old, next)
			receive(t, old.Done(), "Done of the old one")
			receive(t, next.Done(), "Done of the new one")
			receive(t, done, "Upgrade")
			wantErr(t, next.Upgrade(t.Context()), ErrStopped)
		})
	}
}

func TestUpgradeAskedDuringAnother(t *testing.T) {
	addrs := make(chan net.Addr, 9)
	hold := make(chan struct{})
	entered := make(chan struct{})
	one := oneListener(addrs)
	h := newHouse(t, func(g *generation) error {
		if g.n == 2 {
			close(entered)
			<-hold
		}
		return one(g)
	})
	h.opts = func(int) []Option { return []Option{Probation(0)} }
	g := h.first()
	first := g.upgrade()
	receive(t, entered, "the second generation")
	var late []<-chan error
	for range 5 {
		late = append(late, g.upgrade())
	}
	// All five wait: the loop has taken them.
	for n := 0; n < 5; {
		c := make(chan int, 1)
		g.post(func() { c <- len(g.m.callers(wanted)) })
		n = receive(t, c, "the loop")
	}
	close(hold)
	if err := receive(t, first, "the first Upgrade"); err != nil {
		t.Fatal(err)
	}
	for _, c := range late {
		wantErr(t, receive(t, c, "a later Upgrade"), ErrHandedOver)
	}
	h.next()     // 2
	g = h.next() // 3: the five are one
	g.askStop()
	receive(t, g.Done(), "Done")
	if h.last != 3 {
		t.Errorf("%d generations, want 3", h.last)
	}
}

func TestDroppedListenerServesItsQueue(t *testing.T) {
	addrs := make(chan net.Addr, 2)
	serve := make(chan struct{})
	h := newHouse(t, func(g *generation) error {
		if g.n == 1 {
			l, err := g.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				return err
			}
			addrs <- l.Addr()
			go func() { <-serve; g.serve(l) }()
		}
		l, err := g.Listen("tcp", "localhost:0")
		if err == nil && g.n == 2 {
			addrs <- l.Addr()
		}
		return errors.Join(err, g.Ready())
	})
	h.opts = func(int) []Option { return []Option{Probation(0)} }
	g := h.first()
	dropped := <-addrs
	queued, err := net.Dial("tcp", dropped.String())
	if err != nil {
		t.Fatal(err)
	}
	done := g.upgrade()
	next := h.next()
	if err := receive(t, done, "Upgrade"); err != nil {
		t.Fatal(err)
	}
	if (<-addrs).String() == dropped.String() {
		t.Error("another name got the dropped listener")
	}
	close(serve)
	if got := answer(t, queued); got != "1" {
		t.Errorf("the queued connection was answered with %q, want %q", got, "1")
	}
	receive(t, g.Done(), "Done of the old one")
	<-g.ended
	if fdtest.Listens(t, dropped) {
		t.Error("the dropped listener listens still")
	}
	next.askStop()
}

func TestNewTwice(t *testing.T) {
	u, err := New(NoSignals(), Logger(nil))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := New(); !errors.Is(err, ErrUpgraderExists) {
		t.Errorf("a second New: %v, want ErrUpgraderExists", err)
	}
	u.askStop()
	receive(t, u.Done(), "Done")
	wantErr(t, u.Ready(), ErrStopped)
	receive(t, u.over, "the end of the loop")
	wantErr(t, u.Upgrade(t.Context()), ErrStopped)
	if l, err := u.Listen("tcp", "127.0.0.1:0"); !errors.Is(err, ErrStopped) || l != nil {
		t.Errorf("Listen after Done: %v, %v, want nil, ErrStopped", l, err)
	}
	if p, err := u.ListenPacket("udp", "127.0.0.1:0"); !errors.Is(err, ErrStopped) || p != nil {
		t.Errorf("ListenPacket after Done: %v, %v, want nil, ErrStopped", p, err)
	}
}

// A new process that dies between go and its first Accept was never ready, and the old
// one has never stopped accepting.
func TestNewDiesBeforeItAccepts(t *testing.T) {
	addrs := make(chan net.Addr, 9)
	serve := oneListener(addrs)
	h := newHouse(t, func(g *generation) error {
		if g.n == 1 {
			return serve(g)
		}
		if err := g.handshake(); err != nil {
			return err
		}
		return errors.New("broken")
	})
	g := h.first()
	addr := <-addrs
	err := receive(t, g.upgrade(), "Upgrade")
	wantErr(t, err, ErrExited)
	if errors.Is(err, ErrRolledBack) {
		t.Errorf("%v is reported as rolled back", err)
	}
	if got := ask(t, addr); got != "1" {
		t.Errorf("generation %s answers, want 1", got)
	}
}
