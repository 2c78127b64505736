package tableflip

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/julofinance/grace/v3"
)

// The locks of this package, in the order in which they are taken; those of grace come
// after them:
//
//	Upgrader.upgrading  held for a whole upgrade; awaitEnd takes Fds.mu with it
//	Fds.mu              held while a socket is opened, also by a callback of the program
//	listener.mu         held by settle, which stop calls with Fds.mu held
//	only.mu             held by New alone, which takes none of the others

// DefaultUpgradeTimeout is how long a new process may take until it is ready,
// unless [Options] says otherwise.
const DefaultUpgradeTimeout time.Duration = time.Minute

// queueTimeout is how long Stop waits until the connections that clients have made
// and the program has not accepted yet are accepted.
const queueTimeout = 5 * time.Second

// parentPatience is how long Upgrade waits for the end of the old process to be known. A
// caller may have seen that end a moment before this process has.
const parentPatience = time.Second

// ErrNotSupported is returned by New, and by Upgrade, where a process can't be
// replaced. It is [grace.ErrNotSupported] too.
var ErrNotSupported = fmt.Errorf("tableflip: platform does not support graceful restart: %w", grace.ErrNotSupported)

// Options are what [New] can be told. The zero value is fine.
type Options struct {
	// UpgradeTimeout is how long a new process may take until it calls Ready; then
	// it is killed, and the upgrade has failed. Default: DefaultUpgradeTimeout.
	UpgradeTimeout time.Duration
	// PIDFile names the file that holds the pid of the process that serves. Default:
	// the variable GRACE_PIDFILE; without that, none.
	PIDFile string
	// ListenConfig opens the sockets that are not inherited. Default: the zero one.
	ListenConfig *net.ListenConfig
}

// An Upgrader replaces the process that it lives in. All its methods may be called
// from several goroutines at once.
type Upgrader struct {
	*Fds

	u    *grace.Upgrader
	exit chan struct{}

	ready      atomic.Bool
	stopOnce   sync.Once
	stopping   atomic.Bool
	parentGone chan struct{} // closed when there is no old process

	upgrading sync.Mutex // held by Upgrade, and by awaitEnd
	upgraded  atomic.Bool
}

// supported is whether processes can be replaced here; variable for the test.
var supported = runtime.GOOS != "windows"

// only is whether New has succeeded before.
var only struct {
	mu   sync.Mutex // guards made
	made bool
}

// New gives the Upgrader of this process; the files that the old process has
// handed over are in its Fds. Only one call succeeds in a process. The error is
// [ErrNotSupported] on Windows, and [grace.ErrAlreadyRunning] if another instance
// holds the PID file.
func New(opts Options) (upg *Upgrader, err error) {
	only.mu.Lock()
	defer only.mu.Unlock()
	if !supported {
		return nil, ErrNotSupported
	}
	if only.made {
		return nil, errors.New("tableflip: New was called before; use the one Upgrader of this process for all sockets")
	}
	u, err := grace.New(opts.grace()...)
	if err != nil {
		return nil, err
	}
	only.made = true
	upg = &Upgrader{
		u: u, Fds: newFds(u, opts.ListenConfig),
		exit: make(chan struct{}), parentGone: make(chan struct{}),
	}
	go upg.awaitParent()
	go upg.awaitEnd()
	return upg, nil
}

func (o Options) grace() []grace.Option {
	timeout := o.UpgradeTimeout
	if timeout <= 0 {
		timeout = DefaultUpgradeTimeout
	}
	opts := []grace.Option{grace.NoSignals(), grace.ReadyTimeout(timeout), grace.DrainTimeout(queueTimeout)}
	if o.PIDFile != "" {
		opts = append(opts, grace.PIDFile(o.PIDFile))
	}
	if o.ListenConfig != nil {
		opts = append(opts, grace.ListenConfig(*o.ListenConfig))
	}
	return opts
}

func (u *Upgrader) awaitParent() {
	u.u.WaitForParent(context.Background())
	close(u.parentGone)
}

// awaitEnd closes Exit once what this process has of the sockets is closed.
func (u *Upgrader) awaitEnd() {
	<-u.u.Done()
	u.upgrading.Lock() // an Upgrade that runs has its answer already
	defer u.upgrading.Unlock()
	u.Fds.end(!u.upgraded.Load())
	close(u.exit)
}

// Ready says that this process can serve: its listeners accept from here on, the
// PID file names it, inherited files that nothing has asked for are closed, and
// the old process stops accepting. An upgrade ends with it.
func (u *Upgrader) Ready() error {
	unused := u.Fds.unusedPaths()
	if err := u.u.Ready(); err != nil {
		return err
	}
	u.ready.Store(true)
	removeSockets(unused)
	return nil
}

// Exit gives a channel that is closed when the process should exit: a new process
// has taken over, or Stop was called. The program's own listeners and connections
// are open still; it is the program that finishes what it has begun.
func (u *Upgrader) Exit() <-chan struct{} { return u.exit }

// Stop lets no more upgrade happen, kills a new process that is not ready yet, and
// closes the channel that Exit gives. The paths of unix sockets are removed. Once an
// Upgrade has succeeded it does nothing: all that is the new process's, unless that dies
// before Exit, and this one serves on. It returns at once.
func (u *Upgrader) Stop() {
	if u.hasHandedOver() {
		return
	}
	u.stopOnce.Do(func() {
		u.upgraded.Store(false) // it was rolled back: the paths are this process's
		u.stopping.Store(true)
		u.Fds.stop()
		go u.u.Shutdown(context.Background()) // it waits for Done, and Stop does not
	})
}

// WaitForParent returns when the old process has exited, or at once if there was
// none. The error is the context's.
func (u *Upgrader) WaitForParent(ctx context.Context) error {
	// Upgrade looks at the same channel: once this has returned it finds no old process.
	select {
	case <-u.parentGone:
		return nil
	default:
	}
	select {
	case <-u.parentGone:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// HasParent reports whether an old process has started this one to be replaced by
// it. It stays so when that one has exited.
func (u *Upgrader) HasParent() bool { return u.u.HasParent() }

// Upgrade starts a new process, and returns nil when that has taken over: Exit is
// closed then, or in a moment. Any error says why it has not; this process serves
// on then. It is an error to call Upgrade before Ready, while the old process of
// this one still lives, for which Upgrade waits a second, and while another Upgrade runs.
func (u *Upgrader) Upgrade() error {
	if u.stopping.Load() {
		return errTerminating
	}
	if !u.upgrading.TryLock() {
		return errors.New("tableflip: an upgrade is in progress")
	}
	defer u.upgrading.Unlock()
	if u.hasHandedOver() {
		return errors.New("tableflip: this process was upgraded already")
	}
	if !u.ready.Load() {
		return errors.New("tableflip: this process is not ready yet; call Ready before Upgrade")
	}
	select {
	case <-u.parentGone:
	case <-u.u.Done():
		return errTerminating
	case <-time.After(parentPatience):
		return errors.New("tableflip: the old process has not exited yet; upgrade this one once it has")
	}
	err := u.u.Upgrade(context.Background())
	switch {
	case errors.Is(err, grace.ErrStopped):
		return errTerminating
	case errors.Is(err, grace.ErrNotSupported):
		return fmt.Errorf("%w: %w", ErrNotSupported, err)
	}
	u.upgraded.Store(err == nil)
	return err
}

// hasHandedOver reports whether an Upgrade has succeeded, and the new process has not died
// since, before Exit: then this one serves on.
func (u *Upgrader) hasHandedOver() bool {
	if !u.upgraded.Load() {
		return false
	}
	switch u.u.State() {
	case grace.StateDraining, grace.StateLingering, grace.StateStopped:
		return true
	}
	return false
}

var errTerminating = fmt.Errorf("tableflip: terminating: %w", grace.ErrStopped)
