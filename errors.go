package grace

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/julofinance/grace/v3/internal/control"
	"github.com/julofinance/grace/v3/internal/hint"
	"github.com/julofinance/grace/v3/internal/sockets"
)

// The ways in which an upgrade or a start can fail, to be told apart with
// [errors.Is]. Every error of [Upgrader.Upgrade] that concerns the new process
// is an [*UpgradeError] as well, which has its pid and exit status.
var (
	// ErrNotSupported is returned by Upgrade where the process is PID 1, whose
	// end is that of its container, and where the platform can't hand
	// sockets to another process (Windows, js, wasip1, plan9).
	// It matches [errors.ErrUnsupported].
	ErrNotSupported error = notSupported{}

	// ErrStopped is returned by calls on an Upgrader that is stopping or has stopped.
	ErrStopped = sockets.ErrStopped

	// ErrHandedOver is returned by Upgrade where another upgrade has handed
	// over meanwhile: the request was passed on to the new process.
	ErrHandedOver = errors.New("this process has handed over; the request was passed on to the new one")

	// ErrRefused means that the function given to [BeforeUpgrade] refused:
	// no process was started.
	ErrRefused = errors.New("the upgrade was refused before it began")

	// ErrStart means that the new process could not be started: no such file,
	// not executable, no process or descriptor to be had.
	ErrStart = errors.New("the new process could not be started")

	// ErrExited means that the new process ended before it was ready.
	ErrExited = errors.New("the new process ended before it was ready")

	// ErrReadyTimeout means that the new process was not ready within
	// [ReadyTimeout] and was killed.
	ErrReadyTimeout = errors.New("the new process was not ready in time")

	// ErrProtocol means that the new process does not speak this hand-over:
	// it wrote something else, hung up, or speaks another version. It was killed.
	ErrProtocol = control.ErrProtocol

	// ErrExclusive means that the exclusive state did not change hands, see
	// [Exclusive]: what the old process had begun was not finished within
	// [ExclusiveTimeout], or release has failed. The new process was killed. It is
	// also in the error of Ready if acquire has failed, and in the one of Serve and
	// Run if that was to have the state back.
	ErrExclusive = errors.New("the exclusive state did not change hands")

	// ErrState means that the state of [CarryState] was not carried over: save has failed
	// or was not finished in time, the old process has died, or restore has failed. It is
	// in the errors that restore reads, and in the one of Ready if restore has failed.
	ErrState = errors.New("the old process's state was not carried over")

	// ErrRolledBack means that the new process died after it was ready, and that this
	// one accepts connections again.
	ErrRolledBack = errors.New("the new process died after it was ready; rolled back")

	// ErrUnhealthy means that the new process was ready, lived and did not work, was
	// killed for that, and that this one accepts connections again: a [HealthCheck] has
	// failed, it did not answer this process or hung up, or it accepted no connection. It
	// matches [ErrRolledBack] too.
	ErrUnhealthy error = unhealthy{}

	// ErrAlreadyRunning is returned by New where another process holds the
	// PID file. The error is a [*RunningError] too.
	ErrAlreadyRunning = errors.New("already running")

	// ErrUpgraderExists is returned by New if this process has an Upgrader already.
	ErrUpgraderExists = errors.New("this process has an Upgrader already; use one for all its listeners")

	// ErrMaster is returned by New and Listen if a variable by which a master
	// (socketmaster, einhorn, start_server, systemd) passes its sockets is
	// malformed or not true: no number, a descriptor that is closed or no
	// listening socket, a count or a process id that is wrong. The text names
	// the variable; nothing is served.
	ErrMaster = sockets.ErrMaster

	// ErrPathInUse is returned by Listen for a unix socket path on which
	// another process answers.
	ErrPathInUse = sockets.ErrAnswered
)

type notSupported struct{}

func (notSupported) Error() string        { return "upgrade is not supported here" }
func (notSupported) Is(target error) bool { return target == errors.ErrUnsupported }

type unhealthy struct{}

func (unhealthy) Error() string        { return "the new process was ready and did not work; rolled back" }
func (unhealthy) Is(target error) bool { return target == ErrRolledBack }

// An UpgradeError says why an upgrade failed, and what became of the new process.
type UpgradeError struct {
	// Reason is one of the Err values of this package; errors.Is finds it.
	Reason error
	// Pid is the pid that the new process had; 0 if none was started.
	Pid int
	// State is how the new process ended; nil if none was started.
	State *os.ProcessState
	// Err is the cause; may be nil.
	Err error
}

// Error gives the reason, the cause and how the new process ended.
func (e *UpgradeError) Error() string {
	s := "grace: " + e.Reason.Error()
	if e.Pid != 0 {
		s += fmt.Sprintf(" (pid %d", e.Pid)
		if e.State != nil {
			s += ", " + e.State.String()
		}
		s += ")"
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap gives the reason and the cause to errors.Is and errors.As.
func (e *UpgradeError) Unwrap() []error {
	if e.Err == nil {
		return []error{e.Reason}
	}
	return []error{e.Reason, e.Err}
}

// A RunningError says which process holds the PID file.
type RunningError struct {
	Path string
	Pid  int // 0 if the file does not name one
}

func (e *RunningError) Error() string {
	if e.Pid == 0 {
		return fmt.Sprintf("grace: already running: another process holds the PID file %s; stop it, or use another PID file", e.Path)
	}
	return fmt.Sprintf("grace: already running as pid %d, which holds the PID file %s; stop it, upgrade it with SIGUSR2, or use another PID file", e.Pid, e.Path)
}

// Is makes errors.Is(err, ErrAlreadyRunning) true.
func (e *RunningError) Is(target error) bool { return target == ErrAlreadyRunning }

// isShort reports whether err means that something is used up: descriptors,
// memory, processes.
func isShort(err error) bool {
	return slices.ContainsFunc(errShort, func(short error) bool { return errors.Is(err, short) })
}

// advice is what the operator may do about a failed upgrade.
func advice(err error) string {
	var start *hint.Error
	switch {
	case errors.As(err, &start):
		return start.Do
	case errors.Is(err, ErrStart) && isShort(err):
		return "raise the limit of open files, processes or memory that the error speaks of (ulimit, the unit's Limit…=, the machine's), or end what takes so many, and send the signal again"
	case errors.Is(err, ErrNotSupported):
		return "let a process that stays be PID 1, and start this one from there: see docs/docker.md"
	case errors.Is(err, ErrRefused):
		return "see why BeforeUpgrade refused, then send the signal again"
	case errors.Is(err, ErrStart):
		return "check that the binary exists, is executable and is for this machine"
	case errors.Is(err, ErrExclusive):
		return "see in the lines before what was not finished in time, or why release failed; raise ExclusiveTimeout, or give CutAtRelease"
	case errors.Is(err, ErrReadyTimeout):
		return "see in the new process's own output what it waited for, or raise ReadyTimeout"
	case errors.Is(err, ErrProtocol):
		return "check that the new binary uses this library in a compatible version; if not, restart the service once"
	case errors.Is(err, ErrUnhealthy):
		return "see the error and the new process's last output for what does not work; put the old version in place, or mend the health check, before the next upgrade"
	case errors.Is(err, ErrRolledBack):
		return "see the new process's last output for the reason; put the old version in place before the next upgrade"
	}
	return "see the new process's own output for the reason, mend it and send the signal again"
}
