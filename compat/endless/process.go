package endless

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/julofinance/grace/v3"
)

// All servers of a process share its Upgrader, which comes with the first of them.
//
// The locks of this package, in the order in which they are taken; those of grace come
// after them:
//
//	process.hooks  held for reading while the program's hooks run, and what the signal asks
//	               for: a hook may call this package
//	current.mu     held while grace.New runs
//	servers.mu, process.mu, endlessServer.hooksMu: no other is taken with one of them

// forever is a drain without an end.
const forever = 10 * 365 * 24 * time.Hour

// settleTime is how long a new process waits for servers that have not begun, and for
// inherited sockets that nothing listens on, before it says that it is ready.
const settleTime = 5 * time.Second

// coming are the servers that were made and have not begun.
var coming servers

type servers struct {
	mu  sync.Mutex
	all []*endlessServer // guarded by mu
}

func (s *servers) add(srv *endlessServer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !slices.Contains(s.all, srv) {
		s.all = append(s.all, srv)
	}
}

func (s *servers) remove(srv *endlessServer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = slices.DeleteFunc(s.all, func(o *endlessServer) bool { return o == srv })
}

func (s *servers) list() []*endlessServer {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.all)
}

// A process is an Upgrader with its servers.
type process struct {
	u       *grace.Upgrader
	running servers
	signals chan os.Signal
	hooks   sync.RWMutex // held for reading by what runs at a signal
	told    atomic.Bool  // to stop: Shutdown is called, or is about to be

	readyOnce sync.Once
	readyErr  error // of Ready; set once

	mu     sync.Mutex
	settle *time.Timer // until Ready is called in any case; guarded by mu
}

var current struct {
	mu sync.Mutex
	p  *process // guarded by mu; nil: there was none yet
}

// theProcess gives the one of now. It ends with its Upgrader, and another one may follow.
func theProcess() (*process, error) {
	current.mu.Lock()
	defer current.mu.Unlock()
	if p := current.p; p != nil && !p.isOver() {
		return p, nil
	}
	drain := DefaultHammerTime
	if drain < 0 {
		drain = forever
	}
	// First the signals: once New has returned, SIGHUP ends a process that does not
	// handle it.
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, hookableSignals...)
	u, err := grace.New(grace.NoSignals(), grace.DrainTimeout(drain))
	if err != nil {
		signal.Stop(signals)
		return nil, err
	}
	p := &process{u: u, signals: signals}
	go p.handleSignals()
	current.p = p
	return p, nil
}

// endIfIdle ends a process that has no server and that none will come to.
func endIfIdle() {
	current.mu.Lock()
	p := current.p
	current.mu.Unlock()
	if p == nil || len(p.running.list()) > 0 || len(coming.list()) > 0 {
		return
	}
	p.u.Abort()
	<-p.u.Done()
}

func (p *process) isOver() bool {
	select {
	case <-p.u.Done():
		return true
	default:
		return false
	}
}

// isEnding reports whether this process finishes what it has begun. After an upgrade that
// is so until the new process is rolled back: only the Upgrader knows.
func (p *process) isEnding() bool {
	state := p.u.State()
	return p.told.Load() || state == grace.StateDraining || state == grace.StateLingering || state == grace.StateStopped
}

// serve runs srv until it, or the process, has ended.
func (p *process) serve(srv *endlessServer) error {
	p.running.add(srv)
	coming.remove(srv)
	var execute func() error
	if srv.secure {
		execute, _ = p.u.HTTPS(&srv.Server, srv.EndlessListener, "", "")
	} else {
		execute, _ = p.u.HTTP(&srv.Server, srv.EndlessListener)
	}
	p.mayBeReady()
	err := execute()
	p.running.remove(srv)
	if err != nil && !(p.isEnding() && errors.Is(err, http.ErrServerClosed)) {
		endIfIdle() // the others serve on
		return err
	}
	<-p.u.Done()
	p.awaitHooks()
	p.readyOnce.Do(func() {}) // or wait for the call that is at it
	if errors.Is(p.readyErr, grace.ErrStopped) {
		return nil
	}
	return p.readyErr
}

// hookPatience is how long a process that ends waits for hooks that run. One may wait
// for Serve to return.
const hookPatience = 5 * time.Second

func (p *process) awaitHooks() {
	over := make(chan struct{})
	go func() {
		p.hooks.Lock()
		p.hooks.Unlock() //lint:ignore SA2001 it is only waited for
		close(over)
	}()
	select {
	case <-over:
	case <-time.After(hookPatience):
	}
}

// mayBeReady calls Ready once all servers of before have begun: what has not by then
// would find its address in use by the old process. A first process has none of before.
func (p *process) mayBeReady() {
	if !p.u.HasParent() || len(coming.list()) == 0 && !slices.ContainsFunc(p.u.Inherited(), isListener) {
		p.ready()
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.settle != nil {
		p.settle.Stop()
	}
	p.settle = time.AfterFunc(settleTime, p.ready)
}

func isListener(in grace.Inherited) bool { return in.Kind == "listener" }

func (p *process) ready() {
	p.readyOnce.Do(func() {
		if p.readyErr = p.u.Ready(); p.readyErr != nil {
			p.u.Abort() // and all servers return
		}
	})
}

func (p *process) handleSignals() {
	defer signal.Stop(p.signals)
	for {
		select {
		case s := <-p.signals:
			p.hooks.RLock()
			servers := p.running.list() // they may have ended when all is done
			runHooks(servers, PRE_SIGNAL, s)
			act := func() {
				p.act(s)
				runHooks(servers, POST_SIGNAL, s)
				p.hooks.RUnlock()
			}
			// What takes its time must not hold up other signals.
			if s == syscall.SIGHUP || isHammer(s) {
				go act()
			} else {
				act()
			}
		case <-p.u.Done():
			return
		}
	}
}

func runHooks(servers []*endlessServer, prePost int, s os.Signal) {
	for _, srv := range servers {
		srv.runHooks(prePost, s)
	}
}

// act does what a signal asks for.
func (p *process) act(s os.Signal) {
	switch {
	case s == syscall.SIGHUP:
		p.u.Upgrade(context.Background()) // its error is in the log
	case s == syscall.SIGINT || s == syscall.SIGTERM:
		p.told.Store(true)
		go p.u.Shutdown(context.Background())
	case isHammer(s):
		p.hammer()
	}
}

// hammer cuts off what a process that ends has left. One that stands by ends in a moment,
// unless it is rolled back: the signal counts then, too.
func (p *process) hammer() {
	for p.u.State() == grace.StateStandingBy {
		time.Sleep(10 * time.Millisecond)
	}
	if !p.isEnding() {
		return
	}
	slog.Warn("endless: what is left is cut off, as SIGUSR2 says", "pid", os.Getpid())
	for _, srv := range p.running.list() {
		srv.Close()
	}
}
