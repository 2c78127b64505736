//go:build unix

package tableflip

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// dup gives another descriptor of what c has. The File methods of package net do
// that too, but not every [syscall.Conn] has one.
func dup(c syscall.Conn, name string) (*os.File, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	var dupErr error
	if err := raw.Control(func(of uintptr) {
		fd, dupErr = unix.FcntlInt(of, unix.F_DUPFD_CLOEXEC, 0)
	}); err != nil {
		return nil, err
	}
	if dupErr != nil {
		return nil, os.NewSyscallError("fcntl", dupErr)
	}
	return os.NewFile(uintptr(fd), name), nil
}
