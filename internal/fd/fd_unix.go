//go:build unix

package fd

import (
	"errors"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// CloseAll closes descriptors.
func CloseAll(list []int) {
	for _, n := range list {
		unix.Close(n)
	}
}

// Dup makes another descriptor for the same open file. It is close-on-exec.
func Dup(f syscall.Conn) (int, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	number := -1
	cerr := raw.Control(func(n uintptr) { number, err = unix.FcntlInt(n, unix.F_DUPFD_CLOEXEC, 0) })
	if err = errors.Join(cerr, err); err != nil {
		return -1, os.NewSyscallError("fcntl", err)
	}
	return number, nil
}

// Poll is poll(2) for one descriptor, without a wait: which of events are there, and
// POLLHUP, POLLERR and POLLNVAL, which are always asked for. It is 0 if poll fails.
func Poll(n int, events int16) int16 {
	p := []unix.PollFd{{Fd: int32(n), Events: events}}
	for {
		ready, err := unix.Poll(p, 0)
		if err == unix.EINTR {
			continue
		}
		if ready <= 0 {
			return 0
		}
		return p[0].Revents
	}
}

// IsReadable reports whether a read of n returns at once.
func IsReadable(n int) bool { return Poll(n, unix.POLLIN)&unix.POLLIN != 0 }

// IsHungUp reports whether the other end of n, a connected socket or a pipe, is closed. What
// it has written before may still be there to be read.
func IsHungUp(n int) bool { return Poll(n, 0)&unix.POLLHUP != 0 }

// ErrBrokenPipe is that of a peer that reads no more.
var ErrBrokenPipe error = unix.EPIPE
