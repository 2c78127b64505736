package grace

import (
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// A number that no process runs under does not keep a process from putting the file
// right, or from removing it at the end: a zombie's, or that of a thread.
func TestPIDFileThatNamesNoProcess(t *testing.T) {
	zombie := exec.Command("true")
	if err := zombie.Start(); err != nil {
		t.Fatal(err)
	}
	defer zombie.Wait()
	var info unix.Siginfo
	if err := unix.Waitid(unix.P_PID, zombie.Process.Pid, &info, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	lives := exec.Command("cat")
	in, err := lives.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := lives.Start(); err != nil {
		t.Fatal(err)
	}
	defer lives.Wait()
	defer in.Close()
	for name, c := range map[string]struct {
		pid   int
		lives bool
	}{
		"a zombie":          {zombie.Process.Pid, false},
		"a thread":          {aThread(t), false},
		"a process":         {lives.Process.Pid, true},
		"a process of root": {1, true},
	} {
		t.Run(name, func(t *testing.T) {
			if unix.Kill(c.pid, 0) == unix.ESRCH {
				t.Fatalf("kill(2) finds nothing under %d: it shows nothing", c.pid)
			}
			path := filepath.Join(t.TempDir(), "pid")
			p := newPIDFile(path, "", slog.New(slog.DiscardHandler))
			if err := p.acquire(); err != nil {
				t.Fatal(err)
			}
			overwrite := func() {
				if err := os.WriteFile(path, fmt.Appendln(nil, c.pid), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			overwrite()
			if done, err := p.lookAgain(); done == c.lives || (err != nil) != c.lives {
				t.Errorf("put right: %t, %v; want it to be if, and only if, no process has the number", done, err)
			}
			overwrite()
			p.release(true)
			if _, err := os.Stat(path); (err == nil) != c.lives {
				t.Errorf("after the end: %v; want the file to be left if, and only if, a process has the number", err)
			}
		})
	}
}

// aThread is a thread of this process that is not its first.
func aThread(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if tid, err := strconv.Atoi(e.Name()); err == nil && tid != os.Getpid() {
			return tid
		}
	}
	t.Fatal("this process has one thread only")
	return 0
}
