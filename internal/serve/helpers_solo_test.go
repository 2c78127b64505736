//go:build unix

package serve

import (
	"context"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/sockets"
	"github.com/julofinance/grace/v3/internal/testing/wait"
)

// A solo is a process without another: what an Upgrader does for its servers, and
// nothing else.
type solo struct {
	*Host
	drainTimeout time.Duration
	stop         func()
	done         chan struct{}
}

type setting func(*solo)

func idle(d time.Duration) setting         { return func(a *solo) { a.IdleGrace = d } }
func cutsOffAfter(d time.Duration) setting { return func(a *solo) { a.drainTimeout = d } }

// newHost gives the host of a process that has these sockets.
func newHost(ctx context.Context, socks *sockets.Set) *Host {
	return &Host{
		Socks: socks, Log: slog.New(slog.DiscardHandler), Stopping: ctx, IdleGrace: 5 * time.Second, Move: true,
		Took: func(*sockets.Listener, string) {},
	}
}

// newAlone gives a process, and a listener of it.
func newProcess(t testing.TB, settings ...setting) (*solo, net.Listener) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	a := &solo{Host: newHost(ctx, sockets.New(nil, 0)), drainTimeout: wait.Limit, done: make(chan struct{})}
	for _, set := range settings {
		set(a)
	}
	a.stop = sync.OnceFunc(func() {
		cancel()
		go a.end()
	})
	ln, err := a.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return a, ln
}

func (a *solo) Listen(network, addr string) (net.Listener, error) {
	l, err := a.Socks.Listen(net.ListenConfig{}, network, addr)
	if err != nil {
		return nil, err
	}
	return l, nil
}

// run runs a server, and lets the listeners accept.
func (a *solo) run(t testing.TB, execute func() error) (served <-chan error) {
	t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- execute() }()
	if err := a.Ready(); err != nil {
		t.Fatal(err)
	}
	return ended
}

// Ready lets the listeners accept.
func (a *solo) Ready() error { return a.Socks.OpenGates() }

// Done is closed when the end that askStop begins is over.
func (a *solo) Done() <-chan struct{} { return a.done }

func (a *solo) askStop() { a.stop() }

func (a *solo) end() {
	a.Socks.EndAccept()
	NewDrain(nil).Run(a.All(), a.drainTimeout)
	a.Socks.Close()
	for _, s := range a.Last() {
		s.End()
	}
	close(a.done)
}
