//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/proctest"
	"github.com/julofinance/grace/v3/internal/testing/lingertest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

func TestMain(m *testing.M) { proctest.Main(m) }

type process struct {
	*proctest.Process
	t    *testing.T
	addr string
	pid  int // of the newest generation
}

func start(t *testing.T, args ...string) *process {
	t.Helper()
	p := &process{t: t}
	p.Process = proctest.Start(t, proctest.Command{Path: proctest.Build(t, "."), Args: append([]string{"-addr", "127.0.0.1:0"}, args...)})
	p.pid = p.Pid()
	p.addr = p.WaitLine(`^listening (\S+)`)[1]
	p.WaitLine(`grace: serving`)
	return p
}

// upgrade sends the signal and waits until the new process is ready.
func (p *process) upgrade() (old int) {
	p.t.Helper()
	old = p.pid
	p.Signal(old, syscall.SIGUSR2)
	fmt.Sscan(p.WaitLine(`grace: serving pid=(\d+)`)[1], &p.pid)
	return old
}

// dial gives a client that tries nothing twice, but for what gRPC does by
// itself where the server has surely not seen the call.
func dial(t *testing.T, p *process) *grpc.ClientConn {
	t.Helper()
	c, err := grpc.NewClient("passthrough:///"+p.addr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDisableRetry())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func pidOf(v *wrapperspb.StringValue) (pid int) {
	s, _, _ := strings.Cut(v.Value, " ")
	fmt.Sscan(s, &pid)
	return pid
}

func callNow(ctx context.Context, c *grpc.ClientConn) (pid int, err error) {
	v := new(wrapperspb.StringValue)
	err = c.Invoke(ctx, "/example.Clock/Now", new(emptypb.Empty), v)
	return pidOf(v), err
}

// mustCall calls until it is this process that answers.
func mustCall(t *testing.T, c *grpc.ClientConn, pid int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), proctest.Limit)
	defer cancel()
	for {
		got, err := callNow(ctx, c)
		if err != nil {
			t.Fatalf("call that process %d should answer: %v", pid, err)
		}
		if got == pid {
			return
		}
	}
}

// A stream is one call of Ticks, of which one tick was received.
type stream struct {
	grpc.ClientStream
	left, pid int
}

func openStream(t *testing.T, c *grpc.ClientConn, ticks int) *stream {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*proctest.Limit)
	t.Cleanup(cancel)
	cs, err := c.NewStream(ctx, &clock.Streams[0], "/example.Clock/Ticks")
	if err == nil {
		err = cs.SendMsg(wrapperspb.Int32(int32(ticks)))
	}
	if err == nil {
		err = cs.CloseSend()
	}
	v := new(wrapperspb.StringValue)
	if err == nil {
		err = cs.RecvMsg(v)
	}
	if err != nil {
		t.Fatal("stream: ", err)
	}
	return &stream{cs, ticks - 1, pidOf(v)}
}

// mustEnd reads the stream, which must have every tick, of one process.
func (s *stream) mustEnd(t *testing.T) {
	t.Helper()
	for v := new(wrapperspb.StringValue); ; s.left-- {
		err := s.RecvMsg(v)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Errorf("stream of process %d, %d ticks before its end: %v", s.pid, s.left, err)
			return
		}
		if got := pidOf(v); got != s.pid {
			t.Errorf("a tick of process %d in a stream of %d", got, s.pid)
		}
	}
	if s.left != 0 {
		t.Errorf("stream of process %d ended %d ticks too early", s.pid, s.left)
	}
}

// load makes unary calls on several connections until the function that it
// returns is called, which reports what was lost.
func load(t *testing.T, p *process, clients int) (end func()) {
	ctx, cancel := context.WithCancel(context.Background())
	errs := make([]error, clients)
	calls := make([]int, clients)
	var wg sync.WaitGroup
	for i := range clients {
		c := dial(t, p)
		mustCall(t, c, p.pid) // connected from now on
		wg.Go(func() {
			for ctx.Err() == nil && errs[i] == nil {
				_, errs[i] = callNow(context.Background(), c)
				calls[i]++
			}
		})
	}
	end = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
		if err := errors.Join(errs...); err != nil {
			t.Errorf("calls failed: %v", err)
		}
		t.Logf("calls by client: %v", calls)
	})
	t.Cleanup(end)
	return end
}

func TestUpgrades(t *testing.T) {
	p := start(t, "-probation", "50ms")
	end := load(t, p, 4)
	c := dial(t, p)
	for range 4 {
		mustCall(t, c, p.pid)
		s := openStream(t, c, 100)
		old := p.upgrade()
		if s.pid != old {
			t.Fatalf("the stream came from process %d; want %d", s.pid, old)
		}
		mustCall(t, c, p.pid) // while the stream runs, by the same client
		s.mustEnd(t)
		p.WaitGone(old)
	}
	end()
	if n := p.Count(`grace: drained.* cut=0`); n != 4 {
		t.Errorf("%d drains without cut; want 4", n)
	}
}

// A stream in both directions is served by its process over five upgrades, each of which
// begins as soon as it may. With -linger-long each is held for a minute: make linger.
func TestLongStreams(t *testing.T) {
	p := start(t, "-probation", "50ms")
	end := load(t, p, 2)
	type long struct {
		grpc.ClientStream
		pid, n int
	}
	var all []*long
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	echo := func() {
		t.Helper()
		late := time.AfterFunc(2*proctest.Limit, cancel)
		defer late.Stop()
		for _, l := range all {
			l.n++
			got, want := new(wrapperspb.StringValue), fmt.Sprintf("%d message %d", l.pid, l.n)
			err := l.SendMsg(wrapperspb.String(fmt.Sprintf("message %d", l.n)))
			if err == nil {
				err = l.RecvMsg(got)
			}
			if err != nil || got.Value != want {
				t.Fatalf("got %q, %v; want %q", got.Value, err, want)
			}
		}
	}
	run := lingertest.New(t, echo)
	open := func() {
		c := dial(t, p)
		mustCall(t, c, p.pid)
		s, err := c.NewStream(ctx, &clock.Streams[1], "/example.Clock/Echo")
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, &long{ClientStream: s, pid: p.pid})
		echo()
		run.Opened(fmt.Sprintf("gRPC's stream of process %d", p.pid))
	}
	for range lingertest.Upgrades {
		open()
		run.Upgrade()
		old := p.upgrade()
		p.WaitLine(`grace: upgrade done; draining`)
		done := time.Now()
		p.WaitLine(fmt.Sprintf(`grace: the old process lingers; this one may be upgraded.* old=%d`, old))
		run.Over(time.Since(done))
		echo()
	}
	run.End()
	if n := p.Count(`grace: upgrade queued`); n > 0 {
		t.Errorf("%d upgrades have waited", n)
	}
	time.AfterFunc(2*proctest.Limit, cancel)
	for _, l := range all {
		if err := l.CloseSend(); err != nil {
			t.Fatal(err)
		}
		if err := l.RecvMsg(new(wrapperspb.StringValue)); !errors.Is(err, io.EOF) {
			t.Errorf("the stream of process %d has ended with %v, want %v", l.pid, err, io.EOF)
		}
		p.WaitGone(l.pid)
	}
	end()
	if n := p.Count(`grace: drained.* cut=0`); n != 5 {
		t.Errorf("%d processes have ended without a cut, want 5", n)
	}
}

// The new version dies in probation: the old one accepts again.
func TestRollBack(t *testing.T) {
	p := start(t, "-probation", "1m")
	c := dial(t, p)
	old := p.pid
	mustCall(t, c, old)
	s := openStream(t, c, 100)
	end := load(t, p, 2)
	p.upgrade()
	p.Signal(p.pid, syscall.SIGKILL)
	p.WaitLine(`grace: rolled back`)
	mustCall(t, c, old)
	mustCall(t, dial(t, p), old)
	s.mustEnd(t)
	end()
	if got := p.WaitAlone(); got != old {
		t.Errorf("process %d is left; want %d", got, old)
	}
}

// The new version dies when the old one drains already: a new gRPC server in the
// old process accepts again, while the streams of the stopped one still run.
func TestRollBackWhileDraining(t *testing.T) {
	p := start(t, "-probation", "1ms")
	old := p.pid
	first := dial(t, p)
	s := openStream(t, first, 100_000) // longer than the test
	for range 2 {
		c := dial(t, p)
		mustCall(t, c, old)
		p.upgrade()
		p.WaitLine(`grace: upgrade done; draining`)
		mustCall(t, c, p.pid) // GOAWAY was obeyed
		p.Signal(p.pid, syscall.SIGKILL)
		p.WaitLine(`grace: rolled back`)
		mustCall(t, dial(t, p), old)
		p.pid = old
	}
	for v := new(wrapperspb.StringValue); s.left > 99_900; s.left-- {
		if err := s.RecvMsg(v); err != nil || pidOf(v) != old {
			t.Fatalf("a tick of process %d, %v; want one of %d", pidOf(v), err, old)
		}
	}
	first.Close()
	p.WaitGone(p.upgrade())
	mustCall(t, dial(t, p), p.pid)
}
