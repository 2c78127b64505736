package proc

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A new process takes threads. Where the number of threads of a user or a control group is
// limited, it may take the last one, and the runtime of the old process ends the program
// when it can't create a thread that it needs. So no process is started unless there is
// room for one like this, and some more.

// spareThreads is how many threads the old process may come to need meanwhile.
const spareThreads = 8

// A noRoomError says which limit is too low. It unwraps to EAGAIN.
type noRoomError struct {
	what        string
	have, limit uint64
	need        uint64
}

func (e *noRoomError) Error() string {
	return fmt.Sprintf("no room for another process: %s allows %d threads, %d exist, and a process like this one needs up to %d more: %v",
		e.what, e.limit, e.have, e.need, unix.EAGAIN)
}

func (e *noRoomError) Unwrap() error { return unix.EAGAIN }

// CheckRoom returns an error if there may be no room for another process like this one. A
// limit that can't be read is no reason for one.
func CheckRoom() error {
	created, _ := runtime.ThreadCreateProfile(nil)
	r := room{fs: "/", need: uint64(created + spareThreads)}
	all := r.allThreads()
	if err := r.check("kernel.threads-max", all, r.number("proc/sys/kernel/threads-max")); err != nil {
		return err
	}
	if err := r.userLimit(all); err != nil {
		return err
	}
	return r.groupLimit()
}

// room looks at the files below fs, which is / but in tests.
type room struct {
	fs   string
	need uint64
}

func (r room) check(what string, have, limit uint64) error {
	if limit == 0 || have == 0 || have+r.need <= limit {
		return nil
	}
	return &noRoomError{what, have, limit, r.need}
}

// read reads a short file. Files of /proc say that they can be polled, so os.ReadFile
// would wake the poller for each, right before the new process is started.
func (r room) read(name string) string {
	fd, err := unix.Open(filepath.Join(r.fs, name), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	var all []byte
	for buf := make([]byte, 1024); ; {
		n, err := unix.Read(fd, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n <= 0 {
			return strings.TrimSpace(string(all))
		}
		all = append(all, buf[:n]...)
	}
}

// number is 0 if there is no such file, or no limit in it.
func (r room) number(name string) uint64 {
	n, _ := strconv.ParseUint(r.read(name), 10, 64)
	return n
}

// allThreads is how many there are on this machine.
func (r room) allThreads() (n uint64) {
	if f := strings.Fields(r.read("proc/loadavg")); len(f) > 3 {
		_, total, _ := strings.Cut(f[3], "/")
		n, _ = strconv.ParseUint(total, 10, 64)
	}
	return n
}

// userLimit: RLIMIT_NPROC counts the threads of all processes with this user's
// real id. A process with one of two capabilities is exempt, see getrlimit(2).
func (r room) userLimit(all uint64) error {
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NPROC, &limit) != nil || limit.Cur == unix.RLIM_INFINITY || all != 0 && all+r.need <= uint64(limit.Cur) || exempt() {
		return nil
	}
	return r.check(fmt.Sprintf("RLIMIT_NPROC of user %d", unix.Getuid()), r.threadsOf(unix.Getuid()), max(1, uint64(limit.Cur)))
}

// exempt reports whether RLIMIT_NPROC does not count for this process.
func exempt() bool {
	if unix.Getuid() == 0 {
		return true
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	return unix.Capget(&hdr, &data[0]) == nil && data[0].Effective&(1<<unix.CAP_SYS_ADMIN|1<<unix.CAP_SYS_RESOURCE) != 0
}

// threadsOf counts the threads of a user.
func (r room) threadsOf(uid int) (n uint64) {
	dir, err := os.Open(filepath.Join(r.fs, "proc"))
	if err != nil {
		return 0
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	for _, name := range names {
		if name[0] < '0' || name[0] > '9' {
			continue
		}
		status, _ := os.ReadFile(filepath.Join(r.fs, "proc", name, "status"))
		if f := statusField(status, "Uid:"); len(f) == 0 || string(f[0]) != strconv.Itoa(uid) {
			continue
		}
		if f := statusField(status, "Threads:"); len(f) > 0 {
			t, _ := strconv.ParseUint(string(f[0]), 10, 64)
			n += t
		}
	}
	return n
}

func statusField(status []byte, key string) [][]byte {
	_, rest, _ := bytes.Cut(status, []byte("\n"+key))
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	return bytes.Fields(line)
}

// groupLimit: pids.max of the control group of this process, and of all above it.
func (r room) groupLimit() error {
	mount, group := r.pidsGroup()
	if mount == "" {
		return nil
	}
	for {
		dir := filepath.Join(mount, group)
		if err := r.check("/"+dir+"/pids.max", r.number(dir+"/pids.current"), r.number(dir+"/pids.max")); err != nil {
			return err
		}
		if group == "/" || group == "." || group == "" {
			return nil
		}
		group = filepath.Dir(group)
	}
}

// pidsGroup gives the group that counts, and where such groups are mounted
// everywhere; a line is hierarchy:controllers:path, see cgroups(7).
func (r room) pidsGroup() (mount, group string) {
	for line := range strings.Lines(r.read("proc/self/cgroup")) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		switch {
		case len(f) < 3 || !strings.HasPrefix(f[2], "/"):
		case f[1] == "" && mount == "":
			mount, group = "sys/fs/cgroup", f[2]
		case f[1] == "pids":
			mount, group = "sys/fs/cgroup/pids", f[2]
		}
	}
	return mount, group
}
