//go:build linux

package grace

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/proc"
	"github.com/julofinance/grace/v3/internal/sdnotify"
	"github.com/julofinance/grace/v3/internal/serve"
	"github.com/julofinance/grace/v3/internal/sockets"
	"github.com/julofinance/grace/v3/internal/testing/fdtest"
	"golang.org/x/sys/unix"
)

// A hanging is all that is outside of one process; each part of it hangs from the
// time that it is told to until it is let go.
type hanging struct {
	mu    sync.Mutex
	parts map[string]bool
	over  chan struct{}
}

func (h *hanging) hang(part string) {
	h.mu.Lock()
	hangs := h.parts[part]
	h.mu.Unlock()
	if hangs {
		<-h.over
	}
}

// A hangingLog is a log handler that hangs.
type hangingLog struct {
	slog.Handler
	h *hanging
}

func (l hangingLog) Enabled(context.Context, slog.Level) bool { l.h.hang("log"); return true }
func (l hangingLog) Handle(context.Context, slog.Record) error {
	l.h.hang("log")
	return nil
}

// A notifySocket is one of systemd's that no process reads.
type notifySocket struct {
	path string
	fd   int
	over func()
}

func newNotifySocket(t *testing.T) *notifySocket {
	n := &notifySocket{path: filepath.Join(t.TempDir(), "notify")}
	var err error
	if n.fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
		t.Fatal(err)
	}
	n.over = sync.OnceFunc(func() { unix.Close(n.fd) })
	t.Cleanup(n.over)
	if err := unix.Bind(n.fd, &unix.SockaddrUnix{Name: n.path}); err != nil {
		t.Fatal(err)
	}
	return n
}

// next reads the next message, and closes what comes with it.
func (n *notifySocket) next(t *testing.T) string {
	t.Helper()
	read := make(chan string, 1)
	go func() {
		b := make([]byte, 4<<10)
		size, _, err := unix.Recvfrom(n.fd, b, 0)
		if err != nil {
			size = copy(b, err.Error())
		}
		read <- string(b[:size])
	}()
	return receive(t, read, "a message to systemd")
}

// Each thing outside hangs, and all of them at once, from the start or from
// probation on: the goroutine that owns the state answers after each step of an
// upgrade, a roll back and a stop.
func TestLoopAnswersWhileAllElseHangs(t *testing.T) {
	things := map[string][]string{}
	for _, part := range []string{"log", "PID file", "systemd", "BeforeUpgrade", "watchdog", "start", "listener", "Listen", "server"} {
		things[part] = []string{part}
	}
	things["all"] = slices.Collect(maps.Keys(things))
	for name, parts := range things {
		for _, when := range []string{"from the start", "from probation on"} {
			t.Run(name+" "+when, func(t *testing.T) {
				t.Parallel()
				h := &hanging{parts: map[string]bool{}, over: make(chan struct{})}
				begin := func(now string) bool {
					if now != when {
						return false
					}
					h.mu.Lock()
					defer h.mu.Unlock()
					for _, part := range parts {
						h.parts[part] = true
					}
					return true
				}
				testHanging(t, h, begin)
			})
		}
	}
}

func testHanging(t *testing.T, h *hanging, begin func(string) bool) {
	systemd := newNotifySocket(t)
	free := sync.OnceFunc(func() { close(h.over); systemd.over() })
	defer free()
	check := func(part string) func(context.Context) error {
		return func(context.Context) error { h.hang(part); return nil }
	}
	addrs := make(chan net.Addr, 9)
	one := oneListener(addrs)
	house := newHouse(t, func(g *generation) error {
		if g.n == 1 { // the new process drops it
			l, err := g.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				return err
			}
			open := l.(*sockets.Listener).Open
			l.(*sockets.Listener).Open = func() (sockets.Opened, error) { h.hang("listener"); return open() }
			g.serve(l)
		}
		return one(g)
	})
	pid := filepath.Join(t.TempDir(), "pid")
	house.opts = func(n int) []Option {
		o := []Option{PIDFile(pid), Probation(time.Hour), ReadyTimeout(time.Second)}
		if n == 1 {
			o = append(o, Logger(slog.New(hangingLog{slog.DiscardHandler, h})), BeforeUpgrade(check("BeforeUpgrade")), Watchdog(check("watchdog")))
		}
		return o
	}
	house.begin(system{manager: &sdnotify.Manager{Socket: systemd.path, Watchdog: 10 * time.Millisecond}})
	g := house.next()
	if g.err != nil {
		t.Fatal(g.err)
	}
	start := g.sys.start
	g.sys.start = func(ctx context.Context, c command, ready, control int, socks []int) (proc.Process, error) {
		h.hang("start")
		return start(ctx, c, ready, control, socks)
	}
	s := &hangingDrainer{h}
	g.host.Add(s)
	answers := func(after string) {
		t.Helper()
		answered := make(chan struct{})
		go func() {
			g.post(func() {})
			g.post(func() {}) // the one before is done, or the loop has ended
			close(answered)
		}()
		receive(t, answered, "the loop, "+after)
	}
	hangMore := func(when string) {
		if !begin(when) {
			return
		}
		locked := make(chan struct{})
		go func() { // what holds the PID file's lock waits for a disk
			if h.hangs("PID file") {
				g.Upgrader.pid.mu.Lock()
				defer g.Upgrader.pid.mu.Unlock()
			}
			close(locked)
			h.hang("PID file")
		}()
		receive(t, locked, "the PID file")
		if h.hangs("systemd") {
			fdtest.FillUnixgram(t, systemd.path)
		}
		if h.hangs("Listen") { // in a resolver, or the program's code
			go g.socks.Listen(net.ListenConfig{Control: func(string, string, syscall.RawConn) error { h.hang("Listen"); return errors.New("no") }}, "tcp", "127.0.0.1:0")
		}
	}
	hangMore("from the start")
	answers("before the upgrade")
	done := g.upgrade()
	answers("when an upgrade was asked for")
	var next *generation
	select {
	case <-done: // it can't be, or not in time
	case next = <-house.born:
		g.await(standingBy)
	case <-time.After(limit):
		t.Fatal("neither an upgrade nor its failure")
	}
	answers("after the upgrade")
	hangMore("from probation on")
	if next != nil {
		g.post(func() { g.m.child.judged = true; g.m.well() }) // the drain begins
		answers("in the drain")
		next.die()
		g.awaitEither(serving, resuming)
		answers("after the roll back")
	}
	again := g.upgrade()
	answers("when another upgrade was asked for")
	g.askStop()
	answers("when it was told to stop")
	go g.Close()
	answers("when it was told to cut off what is left")
	free()
	receive(t, again, "Upgrade")
	receive(t, g.Done(), "Done")
}

func (h *hanging) hangs(part string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.parts[part]
}

// A hangingDrainer is a server of the program's, which has something to finish.
type hangingDrainer struct{ h *hanging }

func (s *hangingDrainer) Drain(d *serve.Drain) serve.Report {
	s.h.hang("server")
	select {
	case <-d.CalledOff():
	case <-d.TimeUp():
	}
	return serve.Report{}
}

func (s *hangingDrainer) Resume()              { s.h.hang("server") }
func (s *hangingDrainer) Offer(*sockets.Mover) { s.h.hang("server") }
func (s *hangingDrainer) End()                 { s.h.hang("server") }
