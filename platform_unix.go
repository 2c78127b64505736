//go:build unix

package grace

import (
	"context"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

var (
	upgradeSignals = []os.Signal{syscall.SIGUSR2}
	stopSignals    = []os.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT}
	uncatchable    = []os.Signal{syscall.SIGKILL, syscall.SIGSTOP} // signal(7)
	pipeSignals    = []os.Signal{syscall.SIGPIPE}
)

// startProcess starts c with the readiness pipe, the control channel and the
// sockets, and tells it which numbers they have.
func startProcess(ctx context.Context, c command, ready, control int, sockets []int) (process, error) {
	h := handover{version: protocolVersion}
	kept := passedDown()
	h.number(len(sockets), kept)
	if c.sibling = c.sibling && canSibling(); c.sibling {
		h.parent = os.Getppid()
	}
	v, err := h.variable(control)
	if err != nil {
		return nil, err
	}
	c.env = withHandover(c.env, v)
	files := make([]given, 0, 2+len(sockets))
	files = append(files, given{ready, h.ready}, given{control, h.control})
	for i, fd := range sockets {
		files = append(files, given{fd, h.first + i})
	}
	return c.start(ctx, files, kept)
}

// firstSocket is the number of the first of n sockets: after, or higher. Go gives what it starts
// the soft limit of open files that it was started with itself, 1024 usually.
// Many sockets go above that: else no number below it were free, and the
// dynamic linker, or the shell of a script, could not open a file.
func firstSocket(n, after int) int {
	const above = 1024
	var limit unix.Rlimit
	if n < 200 || unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) != nil || uint64(limit.Cur) < uint64(above+n) {
		return after
	}
	return above
}

func killedBySIGKILL(state *os.ProcessState) bool {
	if state == nil {
		return true
	}
	ws, ok := state.Sys().(syscall.WaitStatus)
	return ok && ws.Signaled() && ws.Signal() == syscall.SIGKILL
}

// alive reports whether a process with this pid runs. One that has ended, and that
// its parent has not waited for yet, does not.
func alive(pid int) bool {
	return pid > 0 && unix.Kill(pid, 0) != unix.ESRCH && !onlyANumber(pid)
}

var (
	errBrokenPipe error = unix.EPIPE
	errConnReset  error = unix.ECONNRESET
	errAddrInUse  error = unix.EADDRINUSE
	errTextBusy   error = unix.ETXTBSY
	errShort            = []error{unix.EMFILE, unix.ENFILE, unix.EAGAIN, unix.ENOMEM} // not the binary's fault
	errReadOnly   error = unix.EROFS
)
