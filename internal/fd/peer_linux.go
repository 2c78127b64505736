package fd

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// PeerPID is the pid of the process at the other end of a unix socket, by SO_PEERCRED; 0
// if it can't be told.
func PeerPID(c syscall.Conn) (pid int) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0
	}
	raw.Control(func(n uintptr) {
		if cred, err := unix.GetsockoptUcred(int(n), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = int(cred.Pid)
		}
	})
	return pid
}
