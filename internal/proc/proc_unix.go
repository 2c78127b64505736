//go:build unix

package proc

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// WasKilled reports whether SIGKILL has ended the process, or may have: how it ended is
// not known if state is nil.
func WasKilled(state *os.ProcessState) bool {
	if state == nil {
		return true
	}
	ws, ok := state.Sys().(syscall.WaitStatus)
	return ok && ws.Signaled() && ws.Signal() == syscall.SIGKILL
}

// IsAlive reports whether a process with this pid runs. A zombie does not.
func IsAlive(pid int) bool {
	return pid > 0 && unix.Kill(pid, 0) != unix.ESRCH && !onlyANumber(pid)
}
