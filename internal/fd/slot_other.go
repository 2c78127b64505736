//go:build unix && !linux

package fd

import (
	"os"

	"golang.org/x/sys/unix"
)

// withFile calls f with a file for n, which is valid until f returns. n stays open.
func withFile(n int, f func(*os.File) error) error {
	copied, err := unix.FcntlInt(uintptr(n), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("fcntl", err)
	}
	file := os.NewFile(uintptr(copied), "inherited")
	defer file.Close()
	return f(file)
}
