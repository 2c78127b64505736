//go:build unix

package sockets

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// free makes a system call on the connection return, where no deadline and no
// Close would: Close waits for a Read. That is so once the program has made the
// descriptor a blocking one, or a copy of it, which File gives: O_NONBLOCK
// belongs to both (open(2), fcntl(2)). It ends the connection for the client, and
// is only for connections that are cut off anyway.
func (t *Track) free() {
	t.control(func(n uintptr) {
		fd := int(n)
		flags, err := unix.FcntlInt(n, unix.F_GETFL, 0)
		if err != nil || flags&unix.O_NONBLOCK != 0 {
			return
		}
		unix.SetNonblock(fd, true)
		unix.Shutdown(fd, unix.SHUT_RDWR)
	})
}

// control calls f with the descriptor, unless it is closed.
func (t *Track) control(f func(fd uintptr)) {
	c, ok := t.Inner.(syscall.Conn)
	if !ok {
		return
	}
	if raw, err := c.SyscallConn(); err == nil {
		raw.Control(f)
	}
}
