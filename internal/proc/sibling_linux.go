package proc

import (
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A sibling is a new process that is a child of this process's parent, systemd. If the main
// process is not systemd's own child, systemd warns that it will not notice its end, and
// stays with that: at a stop it sends SIGTERM, does not wait, and kills.
//
// The end of a process that is not our child is seen through its pidfd.
type sibling struct{ life *life }

// CanSibling reports whether a process can be started as a sibling: that takes pidfds.
func CanSibling() bool {
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

func newSibling(l *life) Process { return &sibling{l} }

func startSibling(c Program, files []uintptr) (Process, error) {
	l, err := startForked(c.Path, c.Argv, &syscall.ProcAttr{
		Dir: c.Dir, Env: c.Env, Files: files, Sys: &syscall.SysProcAttr{Cloneflags: unix.CLONE_PARENT},
	})
	if err != nil {
		return nil, c.failed(err)
	}
	return &sibling{l}, nil
}

func (s *sibling) Pid() int    { return s.life.pid }
func (s *sibling) Kill() error { return s.life.kill() }

// Wait returns when the process has ended. The error says how it ended, if the kernel (6.15
// or newer) tells a process that is not the parent.
func (s *sibling) Wait() (*os.ProcessState, error) {
	defer s.life.Close()
	s.life.Await(nil)
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
