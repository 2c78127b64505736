package proc

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"strconv"
	"syscall"

	"github.com/julofinance/grace/v3/internal/fd"
	"golang.org/x/sys/unix"
)

// ParentLife is the life of the old process, with this pid, which has made conn.
// SO_PEERPIDFD (Linux 6.5) names that very process. Otherwise its pid is looked up. If
// the channel is still open after that, or the process is this one's parent, then the
// old process was found: no other process can have got its pid.
func ParentLife(conn *net.UnixConn, pid int) Life {
	l := &life{pid: pid, pidfd: -1}
	raw, err := conn.SyscallConn()
	if err != nil {
		return l
	}
	raw.Control(func(sock uintptr) {
		if n, err := unix.GetsockoptInt(int(sock), unix.SOL_SOCKET, unix.SO_PEERPIDFD); err == nil {
			l.pidfd = n
			return
		}
		n, err := unix.PidfdOpen(pid, 0)
		l.parent = os.Getppid() == pid
		switch {
		case err == nil && (l.parent || !fd.IsHungUp(int(sock))):
			l.pidfd = n
		case err == nil: // whose it is can't be told: old's end is closed, so it is dead
			unix.Close(n)
			l.ended = true
		case l.parent:
		default:
			l.start, _ = startOf(pid)
			l.ended = fd.IsHungUp(int(sock)) // as above
		}
	})
	return l
}

// awaitPidfd waits for the end of a process, in the runtime's poller: a thread that is
// blocked in the kernel for so long is one that the runtime has to create again, and a
// limit of threads may not allow that.
func awaitPidfd(pidfd int) {
	if n, err := unix.FcntlInt(uintptr(pidfd), unix.F_DUPFD_CLOEXEC, 0); err == nil {
		unix.SetNonblock(n, true) // what os.NewFile takes for the poller's
		f := os.NewFile(uintptr(n), "pidfd")
		defer f.Close()
		if raw, err := f.SyscallConn(); err == nil && raw.Read(func(n uintptr) bool { return pidfdOver(int(n)) }) == nil {
			return
		}
	}
	for p := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}; ; {
		if _, err := unix.Poll(p, -1); err != unix.EINTR {
			return
		}
	}
}

// pidfdOver reports whether the process has ended.
func pidfdOver(pidfd int) bool { return fd.IsReadable(pidfd) }

func killPidfd(pidfd int) error { return unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0) }

// startOf is when the process was started, in ticks since the boot; 0 if it is a zombie. See
// proc_pid_stat(5). ok is false if that can't be told.
func startOf(pid int) (start uint64, ok bool) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, false
	}
	_, rest, _ := bytes.Cut(b[max(0, bytes.LastIndexByte(b, ')')):], []byte(" "))
	fields := bytes.Fields(rest) // from the third on
	if len(fields) < 20 {
		return 0, false
	}
	if fields[0][0] == 'Z' || fields[0][0] == 'X' {
		return 0, true
	}
	start, err = strconv.ParseUint(string(fields[19]), 10, 64)
	return start, err == nil
}

// onlyANumber reports whether pid, which kill(2) finds, is a zombie's, or a thread's
// that is not a process's first. Where proc_pid_status(5) can't be read (hidepid), it
// counts as a process's.
func onlyANumber(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return false
	}
	field := func(name string) string {
		_, rest, _ := bytes.Cut(b, []byte("\n"+name+":"))
		value, _, _ := bytes.Cut(rest, []byte("\n"))
		return string(bytes.TrimSpace(value))
	}
	state, leader, threads := field("State"), field("Tgid"), field("Threads")
	if leader != "" && leader != strconv.Itoa(pid) {
		return true
	}
	// The first thread may have ended while others run: that is a zombie that lives.
	return state != "" && (state[0] == 'Z' && threads == "1" || state[0] == 'X')
}

// startForked starts a process, with a pidfd of it if the kernel gives one.
func startForked(path string, argv []string, attr *syscall.ProcAttr) (*life, error) {
	l := &life{pidfd: -1}
	if attr.Sys == nil {
		attr.Sys = &syscall.SysProcAttr{}
	}
	attr.Sys.PidFD = &l.pidfd
	var err error
	if l.pid, _, err = syscall.StartProcess(path, argv, attr); err != nil {
		l.Close()
		return nil, err
	}
	if l.pidfd < 0 {
		l.start, _ = startOf(l.pid)
	}
	return l, nil
}
