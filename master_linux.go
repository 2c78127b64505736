package grace

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

// ancestors are the parent of this process, its parent and so on.
func ancestors() (pids []int) {
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

// whoSet finds the ancestor that has put the variable into our environment: the
// nearest that was not started with it itself. Those below it are wrappers, such
// as a shell that was not replaced by exec.
func whoSet(variable, value string) int {
	want := []byte(variable + "=" + value)
	for _, pid := range ancestors() {
		env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		if err != nil {
			return pid // another user's: no wrapper, which would be ours
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

// holds says whether the process pid has the socket open. Only who may look
// into it can tell, and only he may signal it.
func holds(pid int, socket uint64) error {
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

// whenGone calls f when the process pid, an ancestor, has ended.
func whenGone(pid int, f func()) {
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
		for alive(pid) {
			time.Sleep(500 * time.Millisecond)
		}
		f()
	}()
}
