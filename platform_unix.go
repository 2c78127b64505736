//go:build unix

package grace

import (
	"context"
	"os"
	"syscall"

	"github.com/julofinance/grace/v3/internal/proc"
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
func startProcess(ctx context.Context, c command, ready, control int, sockets []int) (proc.Process, error) {
	h := handover{version: protocolVersion}
	kept := passedDown()
	h.number(len(sockets), kept)
	if c.Sibling = c.Sibling && proc.CanSibling(); c.Sibling {
		h.parent = os.Getppid()
	}
	v, err := h.variable(control)
	if err != nil {
		return nil, err
	}
	c.Env = withHandover(c.Env, v)
	files := make([]proc.Given, 0, 2+len(sockets))
	files = append(files, proc.Given{From: ready, To: h.ready}, proc.Given{From: control, To: h.control})
	for i, fd := range sockets {
		files = append(files, proc.Given{From: fd, To: h.first + i})
	}
	return c.Start(ctx, files, kept)
}

// firstSocket is the number of the first of n sockets: after, or higher. Go gives
// the programs that it starts the soft limit of open files that it was started
// with itself, 1024 usually. Many sockets go above that limit: else no number
// below it would be free, and the dynamic linker, or the shell of a script, could
// not open a file.
func firstSocket(n, after int) int {
	const above = 1024
	var limit unix.Rlimit
	if n < 200 || unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) != nil || uint64(limit.Cur) < uint64(above+n) {
		return after
	}
	return above
}

var (
	errConnReset error = unix.ECONNRESET
	errAddrInUse error = unix.EADDRINUSE
	errTextBusy  error = unix.ETXTBSY
	errShort           = []error{unix.EMFILE, unix.ENFILE, unix.EAGAIN, unix.ENOMEM} // not the binary's fault
	errReadOnly  error = unix.EROFS
)
