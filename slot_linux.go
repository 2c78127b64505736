package grace

import (
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// net.FileListener and net.FileConn want an *os.File, and copy its descriptor. To
// make one of each descriptor would cost as much again: os.NewFile hands one that
// does not block to the poller, and Close takes it out again. So there is one
// file, a slot, whose descriptor is made each of them in turn.
type slot struct {
	mu    sync.Mutex
	file  *os.File
	fd    int // of file
	empty int // what fd is in between
}

var theSlot slot

// withFile calls f with a file that is fd, which stays open, until f returns.
func withFile(fd int, f func(*os.File) error) error {
	s := &theSlot
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.open(); err != nil {
		return err
	}
	if err := unix.Dup3(fd, s.fd, unix.O_CLOEXEC); err != nil {
		return os.NewSyscallError("dup3", err)
	}
	err := f(s.file)
	// Else the socket would stay open when everybody else has closed it.
	unix.Dup3(s.empty, s.fd, unix.O_CLOEXEC)
	return err
}

func (s *slot) open() (err error) {
	if s.file != nil {
		return nil
	}
	if s.empty, err = unix.Eventfd(0, unix.EFD_CLOEXEC); err != nil {
		return os.NewSyscallError("eventfd", err)
	}
	if s.fd, err = unix.FcntlInt(uintptr(s.empty), unix.F_DUPFD_CLOEXEC, 0); err != nil {
		unix.Close(s.empty)
		return os.NewSyscallError("fcntl", err)
	}
	s.file = os.NewFile(uintptr(s.fd), "inherited") // not the poller's: it may block
	return nil
}
