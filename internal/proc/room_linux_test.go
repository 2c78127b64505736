package proc

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// The files that say how many threads there may be, as they are on machines of
// different kinds.
func TestRoom(t *testing.T) {
	for name, tc := range map[string]struct {
		files map[string]string
		text  string // of the error; empty: there is room
	}{
		"nothing is known": {nil, ""},
		"no limit":         {map[string]string{"proc/self/cgroup": "0::/a.slice/b\n", "sys/fs/cgroup/a.slice/b/pids.max": "max\n", "sys/fs/cgroup/a.slice/b/pids.current": "500\n"}, ""},
		"room":             {map[string]string{"proc/self/cgroup": "0::/a.slice/b\n", "sys/fs/cgroup/a.slice/b/pids.max": "100\n", "sys/fs/cgroup/a.slice/b/pids.current": "80\n"}, ""},
		"none":             {map[string]string{"proc/self/cgroup": "0::/a.slice/b\n", "sys/fs/cgroup/a.slice/b/pids.max": "100\n", "sys/fs/cgroup/a.slice/b/pids.current": "81\n"}, "/sys/fs/cgroup/a.slice/b/pids.max allows 100 threads, 81 exist"},
		"none above":       {map[string]string{"proc/self/cgroup": "0::/a.slice/b\n", "sys/fs/cgroup/a.slice/pids.max": "100\n", "sys/fs/cgroup/a.slice/pids.current": "81\n"}, "/sys/fs/cgroup/a.slice/pids.max"},
		"in a container":   {map[string]string{"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/pids.max": "100\n", "sys/fs/cgroup/pids.current": "90\n"}, "/sys/fs/cgroup/pids.max"},
		"first version":    {map[string]string{"proc/self/cgroup": "9:name=systemd:/x\n8:memory,pids:/c\n7:pids:/d\n0::/\n", "sys/fs/cgroup/pids/d/pids.max": "100\n", "sys/fs/cgroup/pids/d/pids.current": "90\n"}, "/sys/fs/cgroup/pids/d/pids.max"},
		"whole machine":    {map[string]string{"proc/loadavg": "0.1 0.2 0.3 2/981 4711\n", "proc/sys/kernel/threads-max": "1000\n"}, "kernel.threads-max allows 1000 threads, 981 exist"},
	} {
		t.Run(name, func(t *testing.T) {
			r := room{fs: t.TempDir(), need: 20}
			for name, text := range tc.files {
				path := filepath.Join(r.fs, name)
				if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
					t.Fatal(err)
				}
			}
			err := errors.Join(r.check("kernel.threads-max", r.allThreads(), r.number("proc/sys/kernel/threads-max")), r.groupLimit())
			if tc.text == "" && err != nil {
				t.Errorf("got %v, want room", err)
			}
			if tc.text != "" && (err == nil || !strings.Contains(err.Error(), tc.text) || !errors.Is(err, syscall.EAGAIN)) {
				t.Errorf("got %v, want an error that has %q", err, tc.text)
			}
		})
	}
}

// The threads of a user are counted on the real machine.
func TestThreadsOfUser(t *testing.T) {
	r := room{fs: "/"}
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Skip(err)
	}
	if n := r.threadsOf(os.Getuid()); n < uint64(len(tasks)) {
		t.Errorf("this user has %d threads, and this process alone %d", n, len(tasks))
	}
	if n := r.threadsOf(987654321); n != 0 {
		t.Errorf("a user that is not there has %d threads", n)
	}
	if n := r.allThreads(); n < uint64(len(tasks)) {
		t.Errorf("the machine has %d threads, and this process alone %d", n, len(tasks))
	}
}
