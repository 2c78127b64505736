package grace

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/julofinance/grace/v3/internal/logqueue"
	"github.com/julofinance/grace/v3/internal/sockets"
)

// An Option changes one thing about an [Upgrader] or a [Serve]. An option with
// a value that makes no sense is reported by New or Serve.
type Option func(*options) error

type options struct {
	pidFile       string
	readyTimeout  time.Duration
	drainTimeout  time.Duration
	probation     time.Duration
	lameDuck      time.Duration
	linger        time.Duration
	upgradeOn     []os.Signal
	stopOn        []os.Signal
	noSignals     bool
	log           *slog.Logger // what the program gave; then ours, which queues for it
	flushLog      func() bool  // of that queue
	listenConfig  net.ListenConfig
	readyCheck    func(context.Context) error
	beforeUpgrade func(context.Context) error
	watchdog      func(context.Context) error
	events        func(Event)
	health        []healthCheck
	env           []string
	args          []string
	executable    string
	dir           string
	move          bool
	moveTLS       bool
	idleGrace     time.Duration
	acquire       func(context.Context) error // nil: there is no exclusive state
	release       func(context.Context) error
	exclusive     time.Duration
	cutAtRelease  bool
	carries       bool // CarryState was given
	saveState     func(context.Context, io.Writer) error
	restoreState  func(context.Context, io.Reader) error

	lingerProcesses int
}

func newOptions(opts []Option) (options, error) {
	o := options{
		pidFile:      pidFileVariable(),
		readyTimeout: time.Minute,
		drainTimeout: 30 * time.Second,
		probation:    time.Second,
		move:         sockets.CanMove,
		idleGrace:    5 * time.Second,
		exclusive:    10 * time.Second,
	}
	for _, opt := range opts {
		if opt == nil {
			continue
		}
		if err := opt(&o); err != nil {
			return o, fmt.Errorf("grace: %w", err)
		}
	}
	if err := o.settleSignals(); err != nil {
		return o, fmt.Errorf("grace: %w", err)
	}
	var logs logqueue.Queue
	o.log, o.flushLog = logs.Logger(o.log), logs.Flush
	return o, nil
}

// takenPIDFile is GRACE_PIDFILE, once New has taken it out of the environment.
var takenPIDFile atomic.Value // string

func pidFileVariable() string {
	if v := os.Getenv("GRACE_PIDFILE"); v != "" {
		return v
	}
	v, _ := takenPIDFile.Load().(string)
	return v
}

// takePIDFileVariable keeps GRACE_PIDFILE from what the program starts: a
// server among them would claim the same file. A new process gets it again.
func takePIDFileVariable() {
	takenPIDFile.Store(pidFileVariable())
	os.Unsetenv("GRACE_PIDFILE")
}

// PIDFile names the file that holds the pid of the process that serves.
// Default: the variable GRACE_PIDFILE; if that is empty too, no file is
// written; New takes the variable out of the environment. A relative path counts
// from the working directory of the first start. The file is switched by rename at
// each upgrade, held by a lock, and removed at the last stop.
func PIDFile(path string) Option {
	return func(o *options) error { o.pidFile = path; return nil }
}

// ReadyTimeout is how long a new process may take from its start until it reports
// that it is ready; then it is killed and the old one goes on. Default 1 minute.
func ReadyTimeout(d time.Duration) Option {
	return positive("ReadyTimeout", d, func(o *options) { o.readyTimeout = d })
}

// DrainTimeout is how long a process that stops, or has handed over, may take
// to finish what it has begun; what is left then is cut off, counted and
// logged. Default 30 seconds; 0 cuts off at once.
func DrainTimeout(d time.Duration) Option {
	return notNegative("DrainTimeout", d, func(o *options) { o.drainTimeout = d })
}

// Probation is how long the old process stands by after the new one is ready,
// with its sockets and its connections, to take over again should the new one
// die. At its end, and during the drain, the new one must answer the old one
// within 10 seconds: one that is stopped or hangs is killed and rolled back. So is one
// from whose full TCP queue nothing is accepted after probation for as long again, at
// least for 2 seconds (Linux). Whether its handlers work is seen by a [HealthCheck] only.
// Default 1 second; 0 drains at once (a new process that dies while the old one
// drains is rolled back all the same).
func Probation(d time.Duration) Option {
	return notNegative("Probation", d, func(o *options) { o.probation = d })
}

// LameDuck is how long a process that is told to stop goes on accepting before it drains: a
// load balancer, or Kubernetes, hears of a stop some seconds late, and sends connections
// until then. Meanwhile [Readiness] says no, HTTP/1 answers say "Connection: close", and
// HTTP/2 connections get GOAWAY; other servers go on as before. [DrainTimeout] counts from
// its end. A second signal, Close, and the end of Shutdown's context end it at once. There
// is none at an upgrade, after [Upgrader.Abort], and under a master. Default 0.
func LameDuck(d time.Duration) Option {
	return notNegative("LameDuck", d, func(o *options) { o.lameDuck = d })
}

// Linger lets an old process linger: if it has something left 2 seconds after
// [Probation], a stream or a long request, it finishes that for up to d more, and the new
// process may be upgraded meanwhile. At most so many processes linger: when there is one
// more, the oldest is given its [DrainTimeout] to end, and the next upgrade waits until it
// has. Default: none lingers; an upgrade waits until the old process of the one before has
// finished, for DrainTimeout at most. 0 processes is the default too.
//
// A process that lingers accepts nothing, has no listener and no PID file, and does not
// take over again if a new one dies. When the service is told to stop, each of those that
// linger is given its DrainTimeout, and so it is when no process of the service is left
// that it could hear of. A stop signal to its own pid ends it alone. A process never lingers
// with [Exclusive] state: what is begun is finished before that is released.
func Linger(d time.Duration, processes int) Option {
	return func(o *options) error {
		switch {
		case processes < 0:
			return fmt.Errorf("Linger: %d processes is below zero", processes)
		case d <= 0 && processes > 0:
			return fmt.Errorf("Linger: %v is not above zero", d)
		}
		o.linger, o.lingerProcesses = d, processes
		return nil
	}
}

// MoveConns sets whether connections that are idle between two requests are moved
// to the new process. Default true, where it can be done: plaintext HTTP/1 on
// Linux, and protocols of your own, see [Server]. Give false if connections carry
// a state of their own, such as a login per connection; they are finished then.
func MoveConns(yes bool) Option {
	return func(o *options) error { o.move = yes && sockets.CanMove; return nil }
}

// MoveTLS sets whether connections over TLS 1.3 that speak HTTP/1 are moved as well:
// those of [Upgrader.HTTPS], ServeTLS and ListenAndServe on a TCP listener of
// Upgrader.Listen, and of [Upgrader.HTTP] on what [crypto/tls.NewListener] makes of one, if
// the new process serves TLS there in any of these ways, has this option too, and a
// certificate for the name that the client has asked for. Their clients notice nothing, not even
// a handshake. Default false: the keys of a connection are read from crypto/tls, which does not
// give them away, and cross a socket between the two processes; docs/tls.md says what that
// means. If this process's crypto/tls is not known well enough, or in FIPS 140 mode, that is logged,
// and nothing is moved. MoveConns(false) switches it off.
func MoveTLS(yes bool) Option {
	return func(o *options) error { o.moveTLS = yes; return nil }
}

// IdleGrace is how long a connection that can't be moved may stay idle once its
// process wants to end; a request that comes in that time is answered, with
// "Connection: close". It is also how long a client may then take for a TLS
// handshake, and from one byte to the next of a request's header. Default 5
// seconds. An idle TLS connection of a process that has handed over may stay longer: almost
// as long as [DrainTimeout], since only that process waits for it.
func IdleGrace(d time.Duration) Option {
	return positive("IdleGrace", d, func(o *options) { o.idleGrace = d })
}

// UpgradeSignals are those that ask for an upgrade; none: only [Upgrader.Upgrade] does.
// Default SIGUSR2, if that is none of StopSignals.
func UpgradeSignals(signals ...os.Signal) Option {
	return signalOption("UpgradeSignals", signals, func(o *options) *[]os.Signal { return &o.upgradeOn })
}

// StopSignals are those that drain and stop; a second one of them stops at once. None:
// only [Upgrader.Shutdown] and the like do. Default those of SIGTERM, SIGINT and
// SIGQUIT that are none of UpgradeSignals.
func StopSignals(signals ...os.Signal) Option {
	return signalOption("StopSignals", signals, func(o *options) *[]os.Signal { return &o.stopOn })
}

// NoSignals leaves every signal to the program, which calls Upgrade and Shutdown itself,
// but for those that UpgradeSignals and StopSignals name. One that the program does not
// handle has Go's default effect then: SIGTERM ends the process at once, without a drain,
// and leaves the PID file behind.
func NoSignals() Option {
	return func(o *options) error { o.noSignals = true; return nil }
}

func signalOption(name string, signals []os.Signal, of func(*options) *[]os.Signal) Option {
	return func(o *options) error {
		for _, s := range signals {
			if s == nil {
				return fmt.Errorf("%s: a signal is nil", name)
			}
			if slices.Contains(uncatchable, s) {
				return fmt.Errorf("%s: a process can't handle %v (%d); use another signal, as SIGUSR2", name, s, s)
			}
		}
		*of(o) = append([]os.Signal{}, signals...) // not nil: the option was given
		return nil
	}
}

// settleSignals sets the signals that no option names.
func (o *options) settleSignals() error {
	upgrades, stops := o.upgradeOn, o.stopOn
	for _, s := range upgrades {
		if slices.Contains(stops, s) {
			return fmt.Errorf("UpgradeSignals, StopSignals: %v is in both", s)
		}
	}
	if o.noSignals {
		o.noSignals = len(upgrades)+len(stops) == 0
		return nil
	}
	if upgrades == nil {
		o.upgradeOn = without(upgradeSignals, stops)
	}
	if stops == nil {
		o.stopOn = without(stopSignals, upgrades)
	}
	return nil
}

// Logger sets where the log lines go; docs/log.md explains each of them. Default
// what [slog.Default] is at each line; a nil logger drops them. They are queued
// and written by a goroutine of their own, so that a log that can't be written
// blocks nothing. What is queued when the process ends is written before Done is
// closed, if that takes no more than a second.
func Logger(l *slog.Logger) Option {
	return func(o *options) error {
		if l == nil {
			l = slog.New(slog.DiscardHandler)
		}
		o.log = l
		return nil
	}
}

// ListenConfig is used to open the sockets that are not inherited: for
// SO_REUSEPORT and other options by Control, for keep-alives, for MPTCP.
// Default: the zero ListenConfig, as net.Listen has it.
//
// Its keep-alives hold for the connections of inherited sockets too. Control is
// not called for those: they are open files that the old process shares, and a
// new version that fails must leave nothing behind. What Control has set when a
// socket was opened stays with it, in every generation, and with its connections
// as far as the kernel hands it down, as TCP_USER_TIMEOUT.
//
// A TCP socket for which Control sets SO_REUSEPORT is bound by Listen, and
// listens from Ready on: until then the kernel gives its connections to the other
// sockets of that port. Listen still says if the address is taken.
func ListenConfig(lc net.ListenConfig) Option {
	return func(o *options) error { o.listenConfig = lc; return nil }
}

// ReadyCheck is called by Ready before it tells the old process anything. An
// error, or a panic, makes Ready fail, the new process should then exit, and the old
// one goes on. Its context ends with [ReadyTimeout].
func ReadyCheck(check func(context.Context) error) Option {
	return func(o *options) error { o.readyCheck = check; return nil }
}

// BeforeUpgrade is called in the old process before a new one is started: a
// place to check the new binary's configuration. An error, or a panic, refuses the upgrade.
// Its context ends with [ReadyTimeout], and when the process is told to stop; one
// that does not return then is left behind, and until it does upgrades are refused.
func BeforeUpgrade(check func(context.Context) error) Option {
	return func(o *options) error { o.beforeUpgrade = check; return nil }
}

// Watchdog gives a check that is called each time before systemd's watchdog is
// told that this process is well (WATCHDOG=1, where the unit has WatchdogSec=).
// An error, or a panic, is logged, and systemd is not told. Its context ends when the next
// call is due. Default: no check; systemd is told as long as the goroutine that
// carries out upgrades and stops is not stuck.
func Watchdog(check func(context.Context) error) Option {
	return func(o *options) error { o.watchdog = check; return nil }
}

// Env is the whole environment of the new process, as KEY=value. Default: the
// environment of this process at the moment of the upgrade.
func Env(env []string) Option {
	return func(o *options) error { o.env = append([]string{}, env...); return nil }
}

// Args are the arguments of the new process, without the program's name.
// Default: those that this process was started with.
func Args(args []string) Option {
	return func(o *options) error { o.args = append([]string{}, args...); return nil }
}

// Executable is the file to start at an upgrade. Default: the path by which
// the first process was started, looked up again each time, so that a flipped
// symlink is followed and a binary replaced by rename is found. A script may
// stand here if it ends in exec of the server.
func Executable(path string) Option {
	return func(o *options) error {
		if path == "" {
			return errors.New("Executable: the path is empty")
		}
		o.executable = path
		return nil
	}
}

// Dir is the working directory of the new process; a relative one counts from
// that of the first start. An upgrade fails with ErrStart if it is not there.
// Default: that of the first start, by the name that PWD had for it then, or
// without symlinks if PWD was not set; if that is gone, the one of this process.
func Dir(path string) Option {
	return func(o *options) error {
		if path == "" {
			return errors.New("Dir: the path is empty")
		}
		o.dir = path
		return nil
	}
}

func positive(name string, d time.Duration, set func(*options)) Option {
	return func(o *options) error {
		if d <= 0 {
			return fmt.Errorf("%s: %v is not above zero", name, d)
		}
		set(o)
		return nil
	}
}

func notNegative(name string, d time.Duration, set func(*options)) Option {
	return func(o *options) error {
		if d < 0 {
			return fmt.Errorf("%s: %v is below zero", name, d)
		}
		set(o)
		return nil
	}
}
