//go:build linux

package proctest

import (
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// A Stat is what /proc/PID/stat says of a process.
type Stat struct {
	Pid, Parent, Group int
	State              byte // R, S, D, T, Z and so on
	Exiting            bool // it is about to be dead: its descriptors may be closed
	Forked             bool // it has not called exec: it is still its parent's program
	Name               string
}

// ReadStat reads the Stat of a process; false if there is none.
func ReadStat(pid int) (Stat, bool) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return Stat{}, false
	}
	line := string(b)
	open, end := strings.IndexByte(line, '('), strings.LastIndexByte(line, ')')
	if open < 0 || end < open {
		return Stat{}, false
	}
	fields := strings.Fields(line[end+1:]) // from the third on, see proc_pid_stat(5)
	if len(fields) < 7 {
		return Stat{}, false
	}
	s := Stat{Pid: pid, Name: line[open+1 : end], State: fields[0][0]}
	s.Parent, _ = strconv.Atoi(fields[1])
	s.Group, _ = strconv.Atoi(fields[2])
	flags, _ := strconv.ParseUint(fields[6], 10, 64)
	s.Exiting = flags&0x4 != 0 // PF_EXITING of the kernel
	s.Forked = flags&0x40 != 0 // PF_FORKNOEXEC
	return s, true
}

// Dead reports whether the process has ended, reaped or not.
func (s Stat) Dead() bool { return s.State == 'Z' || s.State == 'X' }

// stats gives all processes that f wants, by pid.
func stats(f func(Stat) bool) []Stat {
	names, _ := filepath.Glob("/proc/[0-9]*")
	var all []Stat
	for _, name := range names {
		pid, err := strconv.Atoi(filepath.Base(name))
		if err != nil {
			continue
		}
		if s, ok := ReadStat(pid); ok && f(s) {
			all = append(all, s)
		}
	}
	sort.Slice(all, func(i, j int) bool { return all[i].Pid < all[j].Pid })
	return all
}

// FDs gives the descriptors of a process, by number, with what each one is.
func FDs(pid int) (map[int]string, error) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	fds := map[int]string{}
	for _, e := range entries {
		n, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if target, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil {
			fds[n] = target
		}
	}
	return fds, nil
}

// Children gives the processes whose parent is pid, dead ones too.
func Children(pid int) []Stat {
	return stats(func(s Stat) bool { return s.Parent == pid })
}

// The reaper waits for the ended processes of known groups that have come to
// this process. Others' children are left to them.
var (
	groupsMu sync.Mutex
	groups   = map[int]*Process{}
)

func startReaper() {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGCHLD)
	go func() {
		for range c {
			reap()
		}
	}()
}

func reap() {
	groupsMu.Lock()
	defer groupsMu.Unlock()
	for group, owner := range groups {
		for {
			var ws syscall.WaitStatus
			pid, err := syscall.Wait4(-group, &ws, syscall.WNOHANG, nil)
			if err == syscall.EINTR {
				continue
			}
			if err != nil || pid <= 0 {
				break
			}
			owner.ended(pid, ws)
		}
	}
}

// leftBehind are the processes of groups that were not ended.
func leftBehind() []Stat {
	groupsMu.Lock()
	defer groupsMu.Unlock()
	return stats(func(s Stat) bool { return groups[s.Group] != nil })
}
