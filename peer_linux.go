package grace

import (
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// peerName names the process at the other end of a unix socket.
func peerName(c net.Conn) string {
	uc, ok := c.(*net.UnixConn)
	if !ok {
		return ""
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return ""
	}
	name := ""
	raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil && cred.Pid > 0 {
			name = fmt.Sprintf(" (pid %d)", cred.Pid)
		}
	})
	return name
}
