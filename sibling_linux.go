package grace

import (
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A sibling is a new process that is not our child but our parent's, systemd's.
// Of a main process that is somebody else's child systemd says that it will not
// notice its end, and it means that for ever: at a stop it sends SIGTERM, does
// not wait, and kills.
//
// What becomes of a process that is not our child is seen through its pidfd.
type sibling struct{ life *life }

// canSibling says whether this kernel has what siblings take.
func canSibling() bool {
	if os.Getpid() == 1 {
		return false
	}
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return false
	}
	unix.Close(fd)
	return true
}

func newSibling(l *life) process { return &sibling{l} }

func startSibling(c command, files []uintptr) (process, error) {
	l, err := startForked(c.path, c.argv, &syscall.ProcAttr{
		Dir: c.dir, Env: c.env, Files: files, Sys: &syscall.SysProcAttr{Cloneflags: unix.CLONE_PARENT},
	})
	if err != nil {
		return nil, c.failed(err)
	}
	return &sibling{l}, nil
}

func (s *sibling) pid() int    { return s.life.pid }
func (s *sibling) kill() error { return s.life.kill() }

// wait returns when the process has ended. How is in the error, if the kernel
// (6.15 or newer) tells those who are not the parent.
func (s *sibling) wait() (*os.ProcessState, error) {
	defer s.life.close()
	s.life.await(nil)
	return nil, howEnded(s.life.pidfd)
}

// pidfdInfo is struct pidfd_info of <linux/pidfd.h>.
type pidfdInfo struct {
	mask, cgroup    uint64
	pid, tgid, ppid uint32
	ids             [8]uint32
	exitCode        int32
}

func howEnded(pidfd int) error {
	const (
		getInfo  = 3<<30 | uint(unsafe.Sizeof(pidfdInfo{}))<<16 | 0xff<<8 | 11 // PIDFD_GET_INFO
		infoExit = 1 << 3                                                      // PIDFD_INFO_EXIT
	)
	info := pidfdInfo{mask: infoExit}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(pidfd), uintptr(getInfo), uintptr(unsafe.Pointer(&info)))
	if errno != 0 || info.mask&infoExit == 0 {
		return nil
	}
	ws := syscall.WaitStatus(info.exitCode)
	if ws.Signaled() {
		return fmt.Errorf("signal: %v", ws.Signal())
	}
	return fmt.Errorf("exit status %d", ws.ExitStatus())
}
