//go:build unix

package grace

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
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
	// server may change the server of a generation.
	server func(*generation, *http.Server)
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
		srv := &http.Server{Handler: b.handler(g)}
		if b.server != nil {
			b.server(g, srv)
		}
		if b.tls != nil {
			srv.TLSConfig = b.tls.Clone()
			execute, _ := g.HTTPS(srv, ln, "", "")
			go execute()
			return g.Ready()
		}
		execute, _ := g.HTTP(srv, ln)
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

// A pause is that of generation first, which has begun a slow request, busy's, and so does
// not release yet. What idle asks, on a connection from before, and late, on a new one, waits.
type pause struct {
	first            *generation
	idle, busy, late *visitor
	done             <-chan error // of the upgrade
}

func (b *bank) pause(t *testing.T, first *generation) pause {
	t.Helper()
	p := pause{first: first, idle: b.visit(t), busy: b.visit(t)}
	p.idle.ask("1")
	p.busy.send("/slow")
	receive(t, b.slow, "the slow request")
	p.done = first.upgrade()
	first.await(releasing)
	first.awaitHeld(1)
	p.idle.send("/")
	p.late = b.visit(t)
	p.late.send("/")
	return p
}

// endIt lets the time of the pause be over.
func (p pause) endIt() {
	u := p.first.Upgrader
	u.post(func() { u.m.on(evPauseLate{u.m.child.id}) })
}

// areAnswered reads the answers to idle and late.
func (p pause) areAnswered(by string) {
	p.idle.reads(by)
	p.late.reads(by)
}
