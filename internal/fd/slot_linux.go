package fd

import (
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// net.FileListener and net.FileConn want an *os.File, and copy its descriptor. To make a
// file for each descriptor would double the cost: os.NewFile registers one that does not
// block with the poller, and Close removes it again. And it would set the socket to blocking
// for a moment, since these functions call os.File.Fd. So there is one file, a slot, whose
// descriptor becomes a duplicate of each of them in turn.
//
// mu guards all fields, and is held while the slot is in use.
type slot struct {
	mu    sync.Mutex
	file  *os.File
	n     int // the descriptor of file
	empty int // what n is a duplicate of between two uses
}

var theSlot slot

// withFile calls f with a file for n, which is valid until f returns. n stays open.
func withFile(n int, f func(*os.File) error) error {
	s := &theSlot
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.open(); err != nil {
		return err
	}
	if err := unix.Dup3(n, s.n, unix.O_CLOEXEC); err != nil {
		return os.NewSyscallError("dup3", err)
	}
	err := f(s.file)
	// Otherwise the slot would keep the socket open after everything else has closed it.
	unix.Dup3(s.empty, s.n, unix.O_CLOEXEC)
	return err
}

func (s *slot) open() (err error) {
	if s.file != nil {
		return nil
	}
	if s.empty, err = unix.Eventfd(0, unix.EFD_CLOEXEC); err != nil {
		return os.NewSyscallError("eventfd", err)
	}
	if s.n, err = unix.FcntlInt(uintptr(s.empty), unix.F_DUPFD_CLOEXEC, 0); err != nil {
		unix.Close(s.empty)
		return os.NewSyscallError("fcntl", err)
	}
	s.file = os.NewFile(uintptr(s.n), "inherited") // it is blocking, so neither registered nor changed
	return nil
}
