package proc

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/julofinance/grace/v3/internal/fd"
	"golang.org/x/sys/unix"
)

// Ancestors are the parent of this process, its parent and so on.
func Ancestors() (pids []int) {
	for pid := os.Getppid(); pid > 0 && len(pids) < 64; {
		pids = append(pids, pid)
		next, err := parentOf(pid)
		if err != nil {
			break
		}
		pid = next
	}
	return pids
}

func parentOf(pid int) (int, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The name, in parentheses, may hold anything.
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(fields) < 2 {
		return 0, fmt.Errorf("/proc/%d/stat is not understood", pid)
	}
	return strconv.Atoi(string(fields[1]))
}

// SetBy is the pid of the ancestor that has put the variable into this process's
// environment, 0 if none has: the nearest that was not itself started with it. Those
// below it are wrappers, such as a shell that was not replaced by exec.
func SetBy(variable, value string) int {
	want := []byte(variable + "=" + value)
	for _, pid := range Ancestors() {
		env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		if err != nil {
			return pid // another user's, so no wrapper
		}
		inherited := false
		for kv := range bytes.SplitSeq(env, []byte{0}) {
			inherited = inherited || bytes.Equal(kv, want)
		}
		if !inherited {
			return pid
		}
	}
	return 0
}

// HasSocket returns nil if the process pid has the socket with this inode open. Looking
// takes the same permissions as sending it a signal.
func HasSocket(pid int, socket uint64) error {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	links, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	want := fmt.Sprintf("socket:[%d]", socket)
	for _, l := range links {
		if to, err := os.Readlink(dir + "/" + l.Name()); err == nil && to == want {
			return nil
		}
	}
	return errors.New("it does not hold the socket that it is said to have passed")
}

// WhenGone calls f, in a goroutine, when the process pid, an ancestor, has ended.
func WhenGone(pid int, f func()) {
	pidfd, err := unix.PidfdOpen(pid, unix.O_NONBLOCK)
	if err == unix.EINVAL { // before Linux 5.10
		pidfd, err = unix.PidfdOpen(pid, 0)
	}
	if err == nil {
		unix.SetNonblock(pidfd, true)
		watch := os.NewFile(uintptr(pidfd), "pidfd")
		rc, rerr := watch.SyscallConn()
		if err = rerr; err == nil {
			go func() {
				defer watch.Close()
				if rc.Read(func(n uintptr) bool { return fd.IsReadable(int(n)) }) == nil {
					f()
				}
			}()
			return
		}
		watch.Close()
	}
	go func() { // before Linux 5.3, or forbidden
		for IsAlive(pid) {
			time.Sleep(500 * time.Millisecond)
		}
		f()
	}()
}
