//go:build unix

package grace

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/testing/logtest"
	"github.com/julofinance/grace/v3/internal/testing/wait"
)

// A vault is exclusive state, of which the test knows which process has it.
type vault struct {
	t     *testing.T
	mu    sync.Mutex
	owner *generation
	log   []string // "1 acquire", say
	// fail gives the error of a call, by the same words; it may wait.
	fail func(call string) error
	// hang is the same, with the context.
	hang func(ctx context.Context, call string) error
}

func (v *vault) call(ctx context.Context, g *generation, what string, do func() error) error {
	call := fmt.Sprint(g.n, " ", what)
	v.mu.Lock()
	v.log = append(v.log, call)
	v.mu.Unlock()
	if v.hang != nil {
		if err := v.hang(ctx, call); err != nil {
			return err
		}
	}
	if v.fail != nil {
		if err := v.fail(call); err != nil {
			return err
		}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	return do()
}

func (v *vault) options(g func() *generation) Option {
	return Exclusive(func(ctx context.Context) error {
		g := g()
		return v.call(ctx, g, "acquire", func() error {
			if v.owner != nil && !v.owner.isDead() {
				v.t.Errorf("generation %d acquires what generation %d has", g.n, v.owner.n)
			}
			v.owner = g
			return nil
		})
	}, func(ctx context.Context) error {
		g := g()
		return v.call(ctx, g, "release", func() error {
			if v.owner != g {
				v.t.Errorf("generation %d releases what it does not have", g.n)
			}
			v.owner = nil
			return nil
		})
	})
}

func (g *generation) isDead() bool {
	select {
	case <-g.dying:
		return true
	case <-g.ended:
		return true
	default:
		return false
	}
}

func (v *vault) calls() []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Clone(v.log)
}

func (v *vault) want(t *testing.T, calls ...string) {
	t.Helper()
	if got := v.calls(); !slices.Equal(got, calls) {
		t.Errorf("the calls were %q, want %q", got, calls)
	}
}

// A bank is a house whose generations serve HTTP out of a vault.
type bank struct {
	*house
	v     *vault
	addr  net.Addr
	slow  chan struct{} // GET /slow has begun
	go1   chan struct{} // lets it return
	plain map[int]bool  // generations that know of no vault
	tls   *tls.Config   // nil: plaintext
	// stream serves /stream.
	stream http.HandlerFunc
}

func newBank(t *testing.T, opts ...Option) *bank {
	b := &bank{v: &vault{t: t}, slow: make(chan struct{}, 9), go1: make(chan struct{}), plain: map[int]bool{}}
	var mu sync.Mutex
	all := map[int]*generation{}
	b.house = newHouse(t, func(g *generation) error {
		mu.Lock()
		all[g.n] = g
		mu.Unlock()
		ln, err := g.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		if g.n == 1 {
			b.addr = ln.Addr()
		}
		give := func() (func() error, func(error)) { return g.HTTP(&http.Server{Handler: b.handler(g)}, ln) }
		if b.tls != nil {
			give = func() (func() error, func(error)) {
				return g.HTTPS(&http.Server{Handler: b.handler(g), TLSConfig: b.tls.Clone()}, ln, "", "")
			}
		}
		execute, _ := give()
		go execute()
		return g.Ready()
	})
	b.opts = func(n int) []Option {
		o := append([]Option{Probation(0)}, opts...)
		if !b.plain[n] {
			o = append(o, b.v.options(func() *generation { mu.Lock(); defer mu.Unlock(); return all[n] }))
		}
		return o
	}
	return b
}

// only gives options to generation n alone.
func (b *bank) only(n int, more ...Option) {
	all := b.opts
	b.opts = func(i int) []Option {
		if i == n {
			return append(all(i), more...)
		}
		return all(i)
	}
}

func (b *bank) handler(g *generation) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			b.slow <- struct{}{}
			select {
			case <-b.go1:
			case <-r.Context().Done():
			}
		}
		if r.URL.Path == "/stream" {
			b.stream(w, r)
			return
		}
		b.v.mu.Lock()
		defer b.v.mu.Unlock()
		if b.v.owner != g && !b.plain[g.n] {
			b.t.Errorf("generation %d serves %s, and has no vault", g.n, r.URL)
		}
		fmt.Fprint(w, g.n)
	})
}

// awaitHeld waits until n connections are held for the next generation.
func (g *generation) awaitHeld(n int) {
	g.house.t.Helper()
	until(g.house.t, "the idle connections to be held", func() bool {
		held := make(chan int, 1)
		g.post(func() {
			all, _ := g.child.mover.Pending()
			held <- all
		})
		return receive(g.house.t, held, "the loop") == n
	})
}

// A visitor has one connection, and never another.
type visitor struct {
	t *testing.T
	net.Conn
	in *bufio.Reader
}

func (b *bank) visit(t *testing.T) *visitor {
	t.Helper()
	c, err := net.Dial("tcp", b.addr.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(limit))
	return &visitor{t, c, bufio.NewReader(c)}
}

func (v *visitor) send(path string) {
	v.t.Helper()
	if _, err := fmt.Fprintf(v, "GET %s HTTP/1.1\r\nHost: bank\r\n\r\n", path); err != nil {
		v.t.Fatal(err)
	}
}

// reads reads an answer, which must come from that generation.
func (v *visitor) reads(want string) {
	v.t.Helper()
	resp, err := http.ReadResponse(v.in, nil)
	if err != nil {
		v.t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK || string(body) != want {
		v.t.Errorf("got %s %q %v, want the answer of generation %s", resp.Status, body, err, want)
	}
}

func (v *visitor) ask(want string) {
	v.t.Helper()
	v.send("/")
	v.reads(want)
}

// TestExclusive: the vault changes hands when the old generation has finished what it has
// begun, and what comes meanwhile waits. The connection stays. The program is told.
func TestExclusive(t *testing.T) {
	b := newBank(t)
	told := make(eventLog, 99)
	b.only(1, told.option())
	first := b.first()
	idle, busy := b.visit(t), b.visit(t)
	idle.ask("1")
	busy.send("/slow")
	receive(t, b.slow, "the slow request")
	done := first.upgrade()
	first.await(releasing)
	first.awaitHeld(1)
	idle.send("/")
	late := b.visit(t)
	late.send("/")
	if got := first.State(); got != StatePaused {
		t.Errorf("the state is %v, want %v", got, StatePaused)
	}
	paused := told.await(t, EventPaused)
	b.v.want(t, "1 acquire")
	close(b.go1)
	busy.reads("1")
	idle.reads("2")
	late.reads("2")
	if err := receive(t, done, "Upgrade"); err != nil {
		t.Error(err)
	}
	receive(t, first.Done(), "Done")
	next := b.next()
	if paused.Peer != next.Pid() || paused.Generation != 1 {
		t.Errorf("paused: %+v, want generation 1, for process %d", paused, next.Pid())
	}
	if got, want := told.kinds(), []string{"handed over", "draining", "drained", "stopped"}; !slices.Equal(got, want) {
		t.Errorf("after the pause the program was told %q, want %q", got, want)
	}
	busy.ask("2")
	next.askStop()
	receive(t, next.Done(), "Done of the second generation")
	b.v.want(t, "1 acquire", "1 release", "2 acquire", "2 release")
}

// logs gives the lines of generation n.
func (b *bank) logs(n int) *logtest.Handler {
	lines := logtest.New(func(slog.Record) {})
	b.only(n, Logger(slog.New(lines)))
	return lines
}

// awaitLine waits until a line with this in it is written.
func awaitLine(t *testing.T, lines *logtest.Handler, want string) {
	t.Helper()
	if !wait.Poll(func() bool { return strings.Contains(lines.Buffer.String(), want) }) {
		t.Errorf("waited %v for the line\n%s\nthe log says\n%s", limit, want, lines.Buffer)
	}
}

// TestExclusiveNotFinished: a request takes longer than the pause may last. The log says
// which.
func TestExclusiveNotFinished(t *testing.T) {
	const within = 2 * time.Second // what is idle is held by then
	t.Run("the upgrade is refused", func(t *testing.T) {
		b := newBank(t, ExclusiveTimeout(within))
		lines := b.logs(1)
		first := b.first()
		idle, busy := b.visit(t), b.visit(t)
		idle.ask("1")
		busy.send("/slow")
		receive(t, b.slow, "the slow request")
		wantErr(t, receive(t, first.upgrade(), "Upgrade"), ErrExclusive)
		awaitLine(t, lines, fmt.Sprintf(`level=WARN msg="grace: not finished in time, so that exclusive state is kept, and the upgrade given up" count=1 connections="%s (in a request)"`, busy.LocalAddr()))
		idle.ask("1")
		close(b.go1)
		busy.reads("1")
		busy.ask("1")
		first.await(serving)
		b.v.want(t, "1 acquire")
	})
	t.Run("it is cut off", func(t *testing.T) {
		b := newBank(t, ExclusiveTimeout(within), CutAtRelease(true))
		lines := b.logs(1)
		first := b.first()
		idle, busy := b.visit(t), b.visit(t)
		idle.ask("1")
		busy.send("/slow")
		receive(t, b.slow, "the slow request")
		if err := receive(t, first.upgrade(), "Upgrade"); err != nil {
			t.Fatal(err)
		}
		idle.ask("2")
		if _, err := busy.in.ReadByte(); err == nil {
			t.Error("the slow request has an answer")
		}
		receive(t, first.Done(), "Done")
		awaitLine(t, lines, fmt.Sprintf(`level=WARN msg="grace: not finished in time, and cut off, so that exclusive state can be released" count=1 connections="%s (in a request)"`, busy.LocalAddr()))
		b.v.want(t, "1 acquire", "1 release", "2 acquire")
	})
}

// TestExclusiveComesBack: the new generation fails, or the old one can't release; the
// old one has the vault again, and what has waited is served.
func TestExclusiveComesBack(t *testing.T) {
	no := errors.New("no")
	for name, c := range map[string]struct {
		failing string
		want    error
		calls   []string
	}{
		"acquire fails in the new one": {"2 acquire", ErrExited, []string{"1 acquire", "1 release", "2 acquire", "1 acquire"}},
		"release fails":                {"1 release", ErrExclusive, []string{"1 acquire", "1 release", "1 acquire"}},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBank(t)
			waits, fails := make(chan struct{}, 1), make(chan struct{})
			b.v.fail = func(call string) error {
				if call != c.failing {
					return nil
				}
				waits <- struct{}{}
				<-fails
				if call == "1 release" { // it is gone all the same
					b.v.mu.Lock()
					b.v.owner = nil
					b.v.mu.Unlock()
				}
				return no
			}
			first := b.first()
			idle := b.visit(t)
			idle.ask("1")
			done := first.upgrade()
			receive(t, waits, c.failing)
			idle.send("/")
			late := b.visit(t)
			late.send("/")
			close(fails)
			err := receive(t, done, "Upgrade")
			wantErr(t, err, c.want)
			if !strings.Contains(err.Error(), "no") {
				t.Errorf("the error does not say why: %v", err)
			}
			idle.reads("1")
			late.reads("1")
			first.await(serving)
			b.v.want(t, c.calls...)
		})
	}
}

// TestExclusiveNewDiesInThePause: the new generation dies when the old one has paused for
// it, and has released nothing. The old one answers all that waited, at once.
func TestExclusiveNewDiesInThePause(t *testing.T) {
	b := newBank(t)
	serve, begun := b.main, make(chan *generation, 9)
	b.main = func(g *generation) error {
		begun <- g
		return serve(g)
	}
	first := b.first()
	receive(t, begun, "the first generation")
	idle, busy := b.visit(t), b.visit(t)
	idle.ask("1")
	busy.send("/slow")
	receive(t, b.slow, "the slow request")
	done := first.upgrade()
	first.await(releasing)
	first.awaitHeld(1)
	idle.send("/")
	late := b.visit(t)
	late.send("/")
	receive(t, begun, "the second generation").die()
	wantErr(t, receive(t, done, "Upgrade"), ErrExited)
	idle.reads("1")
	late.reads("1")
	first.await(serving)
	close(b.go1)
	busy.reads("1")
	busy.ask("1")
	b.v.want(t, "1 acquire")
	if err := receive(t, first.upgrade(), "the next upgrade"); err != nil {
		t.Fatal(err)
	}
	idle.ask("3")
	busy.ask("3")
	b.v.want(t, "1 acquire", "1 release", "3 acquire")
}

// TestExclusiveReleaseHangs: release takes longer than it may. If it heeds its context, the
// old generation has the vault again. If it never returns, acquire is not called beside it,
// and the service ends; clients are refused, or cut off, and don't wait for ever.
func TestExclusiveReleaseHangs(t *testing.T) {
	for name, heeds := range map[string]bool{"it heeds its context": true, "it never returns": false} {
		t.Run(name, func(t *testing.T) {
			b := newBank(t, ExclusiveTimeout(time.Second))
			waits, over := make(chan struct{}), make(chan struct{})
			defer close(over)
			b.v.hang = func(ctx context.Context, call string) error {
				if call != "1 release" {
					return nil
				}
				close(waits)
				if !heeds {
					<-over
				}
				<-ctx.Done()
				b.v.mu.Lock()
				defer b.v.mu.Unlock()
				b.v.owner = nil // it is gone all the same
				return ctx.Err()
			}
			first := b.first()
			idle := b.visit(t)
			idle.ask("1")
			done := first.upgrade()
			receive(t, waits, "release")
			idle.send("/")
			late := b.visit(t)
			late.send("/")
			wantErr(t, receive(t, done, "Upgrade"), ErrExclusive)
			if heeds {
				idle.reads("1")
				late.reads("1")
				first.await(serving)
				b.v.want(t, "1 acquire", "1 release", "1 acquire")
				return
			}
			receive(t, first.Done(), "Done")
			wantErr(t, first.Run(t.Context()), ErrExclusive)
			for _, v := range []*visitor{idle, late} {
				resp, err := http.ReadResponse(v.in, nil)
				if errors.Is(err, os.ErrDeadlineExceeded) {
					t.Error("a client waits still")
				} else if err == nil && resp.StatusCode != http.StatusServiceUnavailable {
					t.Errorf("a client is answered %s, want 503", resp.Status)
				}
			}
			b.v.want(t, "1 acquire", "1 release")
		})
	}
}

// TestExclusiveRolledBack: the new generation dies, or gives up, when it has the vault
// and serves.
func TestExclusiveRolledBack(t *testing.T) {
	for name, end := range map[string]func(*generation){
		"it dies":     (*generation).die,
		"it gives up": func(g *generation) { g.Abort() },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBank(t, Probation(limit))
			first := b.first()
			b.visit(t).ask("1")
			next, done := first.toProbation()
			b.visit(t).ask("2")
			end(next)
			wantErr(t, receive(t, done, "Upgrade"), ErrRolledBack)
			b.visit(t).ask("1")
			calls := b.v.calls()
			if want := "1 acquire"; calls[len(calls)-1] != want {
				t.Errorf("the calls were %q, want that the last one is %q", calls, want)
			}
		})
	}
}

// TestExclusiveIsLost: the new generation fails, and then the old one can't have the
// vault back. That is the end of the service, and the log says so.
func TestExclusiveIsLost(t *testing.T) {
	b := newBank(t)
	lines := b.logs(1)
	n := 0
	b.v.fail = func(call string) error {
		if strings.HasSuffix(call, "acquire") {
			if n++; n > 1 {
				return errors.New("disk full")
			}
		}
		return nil
	}
	first := b.first()
	err := receive(t, first.upgrade(), "Upgrade")
	wantErr(t, err, ErrExclusive)
	receive(t, first.Done(), "Done")
	wantErr(t, first.Run(t.Context()), ErrExclusive)
	awaitLine(t, lines, `level=ERROR msg="grace: exclusive state can't be had back; this process ends, and no process serves" err="`+ErrExclusive.Error()+`: acquire: disk full`)
	b.v.want(t, "1 acquire", "1 release", "2 acquire", "1 acquire")
}

// TestExclusiveVersions: a version without a vault, and one with it, in either order.
func TestExclusiveVersions(t *testing.T) {
	t.Run("the old one has none", func(t *testing.T) {
		b := newBank(t)
		b.plain[1] = true
		first := b.first()
		if err := receive(t, first.upgrade(), "Upgrade"); err != nil {
			t.Fatal(err)
		}
		b.visit(t).ask("2")
		receive(t, first.Done(), "Done")
		b.v.want(t, "2 acquire")
	})
	t.Run("the new one has none", func(t *testing.T) {
		b := newBank(t)
		b.plain[2] = true
		first := b.first()
		if err := receive(t, first.upgrade(), "Upgrade"); err != nil {
			t.Fatal(err)
		}
		receive(t, first.Done(), "Done")
		b.visit(t).ask("2")
		b.v.want(t, "1 acquire", "1 release")
	})
}

// TestExclusiveNeverReady: a first process can't acquire, or is told to stop meanwhile.
func TestExclusiveNeverReady(t *testing.T) {
	calls := 0
	u, _ := newSolo(t, Exclusive(func(context.Context) error { return errors.New("locked") }, func(context.Context) error { calls++; return nil }))
	err := u.Ready()
	wantErr(t, err, ErrExclusive)
	u.askStop()
	receive(t, u.Done(), "Done")
	if calls > 0 {
		t.Error("release was called, and acquire has failed")
	}

	began := make(chan struct{})
	u, _ = newSolo(t, Exclusive(func(ctx context.Context) error {
		close(began)
		<-ctx.Done()
		return nil // it has it all the same
	}, func(context.Context) error { calls++; return nil }))
	ready := make(chan error, 1)
	go func() { ready <- u.Ready() }()
	receive(t, began, "acquire")
	u.askStop()
	wantErr(t, receive(t, ready, "Ready"), ErrStopped)
	receive(t, u.Done(), "Done")
	if calls != 1 {
		t.Errorf("release was called %d times, want once", calls)
	}
}

// TestExclusiveStopped: the service is told to stop while the vault changes hands.
func TestExclusiveStopped(t *testing.T) {
	for name, c := range map[string]struct {
		at     string // the call that runs when the stop comes
		answer string // which generation serves what has waited
		calls  []string
	}{
		"before go": {"1 release", "1", []string{"1 acquire", "1 release", "1 acquire", "1 release"}},
		"after go":  {"2 acquire", "2", []string{"1 acquire", "1 release", "2 acquire", "2 release"}},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBank(t)
			waits, goOn := make(chan struct{}, 9), make(chan struct{})
			b.v.fail = func(call string) error {
				if call == c.at {
					waits <- struct{}{}
					<-goOn
				}
				return nil
			}
			first := b.first()
			idle := b.visit(t)
			idle.ask("1")
			first.upgrade()
			receive(t, waits, c.at)
			idle.send("/")
			late := b.visit(t)
			late.send("/")
			first.askStop()
			first.State() // the loop has seen it
			close(goOn)
			idle.reads(c.answer)
			late.reads(c.answer)
			receive(t, first.Done(), "Done")
			next := b.next()
			if next.err == nil {
				receive(t, next.Done(), "Done of the second generation")
			}
			b.v.want(t, c.calls...)
		})
	}
}
