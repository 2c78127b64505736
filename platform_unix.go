//go:build unix

package grace

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

var (
	upgradeSignals = []os.Signal{syscall.SIGUSR2}
	stopSignals    = []os.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT}
	pipeSignals    = []os.Signal{syscall.SIGPIPE}
)

// startProcess starts c with the readiness pipe as 3, the control channel as 4
// and the sockets after them, and tells it so.
func startProcess(c command, ready, control int, sockets []int) (process, error) {
	h := handover{version: protocolVersion, ready: 3, control: 4, first: firstSocket(len(sockets)), count: len(sockets)}
	if c.sibling = c.sibling && canSibling(); c.sibling {
		h.parent = os.Getppid()
	}
	v, err := h.variable(control)
	if err != nil {
		return nil, err
	}
	c.env = withHandover(c.env, v)
	fds := []uintptr{uintptr(ready), uintptr(control)}
	for 3+len(fds) < h.first {
		fds = append(fds, ^uintptr(0)) // none
	}
	for _, fd := range sockets {
		fds = append(fds, uintptr(fd))
	}
	return c.start(fds)
}

// firstSocket is the number of the first of n sockets. Go gives what it starts
// the soft limit of open files that it was started with itself, 1024 usually.
// Many sockets go above that: else no number below it were free, and the
// dynamic linker, or the shell of a script, could not open a file.
func firstSocket(n int) int {
	const after, above = 5, 1024
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

// alive says whether a process with this pid exists.
func alive(pid int) bool {
	return pid > 0 && unix.Kill(pid, 0) != unix.ESRCH
}
