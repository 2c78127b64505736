package grace

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/julofinance/grace/v3/internal/fd"
	"github.com/julofinance/grace/v3/internal/inorder"
	"github.com/julofinance/grace/v3/internal/manifest"
	"github.com/julofinance/grace/v3/internal/master"
	"github.com/julofinance/grace/v3/internal/proc"
	"github.com/julofinance/grace/v3/internal/sdnotify"
	"github.com/julofinance/grace/v3/internal/serve"
	"github.com/julofinance/grace/v3/internal/sockets"
)

// An Upgrader replaces the process that it lives in. One process has one.
//
// All methods may be called from several goroutines at once. One goroutine owns
// the state; everything that happens reaches it over one channel.
type Upgrader struct {
	opt        options
	log        *slog.Logger
	notify     *sdnotify.Notifier // nil without systemd
	sys        system
	socks      *sockets.Set
	pid        *pidFile // nil without one
	home       home
	generation int
	parent     *parent        // nil in a first process
	master     *master.Master // nil without one

	ctx    context.Context // ends when this process begins to stop
	cancel context.CancelFunc
	done   chan struct{}
	events chan func()
	over   chan struct{} // closed when no event is handled any more

	saving    chan struct{} // holds one while save of CarryState runs
	checking  atomic.Bool   // BeforeUpgrade runs
	cut       atomic.Int64  // connections that the last drain has cut off
	readyOnce sync.Once
	readyErr  error
	extras    extras                // files and connections
	runs      runs                  // the servers, as Run runs them
	leashes   leashes               // of the old processes that linger
	host      *serve.Host           // the servers, as the drain ends them
	exclusive *exclusive            // nil: there is no exclusive state
	word      *inorder.Queue[Event] // for the program; nil if it wants no events

	// catch handles the signals from its first call on, and returns when that is so. That
	// comes before the PID file names this process: from then on they may come. The runtime
	// takes some 50 µs for each signal, which a new process has while it waits for go.
	catch   func()
	release func() // handles them no more

	restores sync.WaitGroup // those whose last line was not said yet

	// Owned by loop.
	m        machine
	child    *child       // the new process, from its start to its end
	drain    *serve.Drain // running, or nil
	leash    *ownLeash    // of this process, if it is to linger, or does
	pausedAt time.Time    // when it stopped accepting to release exclusive state; zero: it did not
	lost     error        // why exclusive state can't be had back; may be read when done is closed
	alone    bool         // the program was told that the old process is gone
}

// A system is what an Upgrader asks the operating system for; tests have their own.
type system struct {
	inherited    *handover
	inheritedErr error
	master       *master.Master // nil without one
	masterErr    error
	manager      *sdnotify.Manager // nil without systemd's notify socket
	managerErr   error
	starter      starter
	start        func(ctx context.Context, c command, ready, control int, sockets []int) (proc.Process, error)
	parentLife   func(control *net.UnixConn, pid int) proc.Life
	signals      func(*Upgrader) (release func()) // nil: handleSignals
}

func realSystem() system {
	return system{
		inherited: inherited, inheritedErr: inheritedErr,
		master: theMaster, masterErr: theMasterErr,
		manager: theServiceManager, managerErr: theServiceManagerErr,
		starter: theStarter, start: startProcess, parentLife: proc.ParentLife,
	}
}

func (s *system) handleSignals(u *Upgrader) (release func()) {
	if s.signals != nil {
		return s.signals(u)
	}
	return u.handleSignals()
}

// New gives the process's Upgrader: it takes what an old process has handed
// over, takes the PID file at a first start, and from here on handles the
// signals. The process serves nothing before [Upgrader.Ready].
//
// Errors: ErrAlreadyRunning (a *RunningError) if another process holds the PID
// file, ErrUpgraderExists if this process has an Upgrader that has not stopped, or looks
// after a new process still, ErrProtocol if the old process speaks another version,
// and those of options and of the PID file's directory.
func New(opts ...Option) (*Upgrader, error) {
	if !inUse.take() {
		return nil, fmt.Errorf("grace: %w", ErrUpgraderExists)
	}
	u, err := newUpgrader(realSystem(), opts)
	if err != nil {
		inUse.made(nil)
		return nil, err
	}
	inherited, inheritedErr = nil, nil // taken
	takePIDFileVariable()
	theMaster.Taken()
	inUse.made(u)
	return u, nil
}

func newUpgrader(sys system, opts []Option) (_ *Upgrader, err error) {
	o, err := newOptions(opts)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			o.flushLog() // the program exits now
		}
	}()
	u := &Upgrader{
		opt: o, log: o.log, sys: sys, generation: 1, word: newWord(&o),
		done: make(chan struct{}), events: make(chan func()), over: make(chan struct{}),
		saving: make(chan struct{}, 1),
	}
	u.ctx, u.cancel = context.WithCancel(context.Background())
	if sys.inheritedErr != nil {
		u.log.Warn("grace: an environment variable of another process was ignored", "err", sys.inheritedErr)
	}
	if sys.inherited == nil {
		u.master = sys.master
	}
	u.catch = sync.OnceFunc(func() { u.release = sys.handleSignals(u) })
	if err = u.findPlace(); err != nil {
		u.endSignals()
		close(u.over)
		return nil, err
	}
	u.socks.Log = u.log
	if u.parent == nil {
		u.catch()
	}
	u.host = &serve.Host{Socks: u.socks, Log: u.log, Stopping: u.ctx, IdleGrace: o.idleGrace, Move: o.move, MoveTLS: o.moveTLS, Took: u.takes}
	if err := u.takePIDFile(); err != nil {
		var running *RunningError
		if errors.As(err, &running) {
			err = u.blameScript(err, running.Pid)
		}
		u.endSignals()
		if u.parent != nil {
			u.parent.ch.StartWriting()
			u.failReady(err)
			u.parent.ch.Close()
			u.parent.life.Close()
		}
		close(u.over)
		return nil, err
	}
	u.exclusive = o.exclusiveState()
	u.findServiceManager()
	u.m = u.newMachine()
	go u.loop()
	if p := u.parent; p != nil {
		p.lingers = u.keepParent
		p.run(u.log, u.socks, u.over, u.happen)
	}
	u.joinMaster()
	u.foreseeTrouble()
	u.warnIfNeverReady()
	if u.parent != nil {
		go u.catch() // handshake waits for it
	}
	return u, nil
}

func (u *Upgrader) endSignals() {
	u.catch()
	u.release()
	u.cancel()
}

// findPlace finds out which generation this is, and what it has.
func (u *Upgrader) findPlace() (err error) {
	h := u.sys.inherited
	if h == nil {
		if u.sys.masterErr != nil {
			return u.sys.masterErr
		}
		u.socks = sockets.New(nil, 0)
		if m := u.master; m != nil {
			u.socks.FromMaster(m.Sockets, m.AnyAddr)
		}
		u.home = firstHome
		return noHomeErr
	}
	if u.parent, err = joinParent(h, u.opt.readyTimeout); err != nil {
		return err
	}
	m := &u.parent.m
	u.parent.life = u.sys.parentLife(u.parent.ch.Socket(), m.Pid)
	u.generation = m.Generation
	u.home = home{dir: m.Dir, path: m.Path, real: m.Binary}
	if last := len(m.Sockets) - 1; last >= 0 && m.Sockets[last].Kind == manifest.PIDLock {
		m.Sockets = m.Sockets[:last]
		u.parent.pidLock = fd.NewFile(h.first+last, "PID file's lock")
	}
	u.takeLeashes(m, h.first)
	u.socks = sockets.New(m, h.first)
	return nil
}

func (u *Upgrader) takePIDFile() error {
	var lock *os.File
	if u.parent != nil {
		lock = u.parent.pidLock
	}
	if u.opt.pidFile == "" {
		if lock != nil {
			lock.Close() // it stays the old process's alone
		}
		return nil
	}
	p := newPIDFile(u.opt.pidFile, u.home.dir, u.log)
	switch {
	case u.underMaster(): // siblings overlap: the newest takes it when it is ready
		p.master = fmt.Sprintf("%s %d\n", u.master.Name, u.master.Pid)
	case !p.inherit(lock):
		u.catch() // it names us from here on
		if err := p.acquire(); err != nil {
			return err
		}
	}
	u.pid = p
	context.AfterFunc(u.ctx, p.rest)
	return nil
}

// warnIfNeverReady: a program that forgets Ready would wait in silence.
func (u *Upgrader) warnIfNeverReady() {
	after := min(10*time.Second, u.opt.readyTimeout)
	time.AfterFunc(after, func() {
		u.post(func() {
			if u.m.state == starting {
				u.log.Warn("grace: Ready was not called yet, so no listener accepts", "after", after)
			}
		})
	})
}

// post hands f to the goroutine that owns the state; false if it has ended.
func (u *Upgrader) post(f func()) bool {
	select {
	case u.events <- f:
		return true
	case <-u.over:
		return false
	}
}

// happen hands an event to the machine; false if nothing is handled any more.
func (u *Upgrader) happen(e event) bool { return u.post(func() { u.m.on(e) }) }

func (u *Upgrader) loop() {
	defer close(u.over)
	defer u.notify.Close()
	defer u.endSignals()
	for !u.m.isOver() {
		f := <-u.events
		f()
	}
}

func (u *Upgrader) newMachine() machine {
	m := machine{
		do: performer{u}, now: time.Now,
		underMaster: u.underMaster(), supported: supported, exclusive: u.exclusive != nil,
		limits: limits{ready: u.opt.readyTimeout, probation: u.opt.probation, drain: u.opt.drainTimeout, lame: u.opt.lameDuck, pong: pongPatience,
			settle: lingerAfter, processes: u.opt.lingerProcesses,
			exclusive: u.opt.exclusive, cuts: u.opt.cutAtRelease},
		lingerers: u.leashes.lingerers(),
	}
	if u.parent != nil {
		m.parent, m.parentPid = parentAlive, u.parent.m.Pid
	}
	return m
}

// Done is closed when this process should finish what it does and exit: a new
// process has taken over for good, or the service was told to stop, and the
// servers that [Upgrader.HTTP] runs have drained. Other servers drain then.
// There is no way back: a new process that dies later is not rolled back.
func (u *Upgrader) Done() <-chan struct{} { return u.done }

// Generation is 1 in a first process, and one more at each upgrade.
func (u *Upgrader) Generation() int { return u.generation }

// blameScript adds to an error that would not have happened if this process were
// the one that an old one has started, and not a child of that. holder is the pid
// that is in the way, if it is known.
func (u *Upgrader) blameScript(err error, holder int) error {
	var stray *strayError
	if errors.As(u.sys.inheritedErr, &stray) && (holder == 0 || holder == stray.parent) {
		return fmt.Errorf("grace: process %d was to be upgraded, and what it has started for that, process %d, has started this one as a child: a script must end in exec: %w", stray.parent, os.Getppid(), err)
	}
	return err
}
