//go:build unix && !linux

package grace

import (
	"os"

	"golang.org/x/sys/unix"
)

// withFile calls f with a file that is fd, which stays open.
func withFile(fd int, f func(*os.File) error) error {
	copied, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("fcntl", err)
	}
	file := os.NewFile(uintptr(copied), "inherited")
	defer file.Close()
	return f(file)
}
