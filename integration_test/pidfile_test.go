//go:build linux

package integration_test

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/julofinance/grace/v3/internal/proctest"
	"github.com/julofinance/grace/v3/internal/testing/wait"
)

var serving = regexp.MustCompile(`msg="grace: serving".* pid=(\d+) `)

func TestPIDFileNamesALivingProcessAtEveryMoment(t *testing.T) {
	s := startServer(t, "-probation", "1ms")
	const want = 100_000
	var reads atomic.Int64
	var wg sync.WaitGroup
	stop := make(chan struct{})
	named := make([]map[int]int, 2)
	for i := range named {
		named[i] = map[int]int{}
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				b, err := os.ReadFile(s.pidFile)
				if err != nil {
					t.Errorf("read %d: %v", reads.Load(), err)
					return
				}
				pid, err := strconv.Atoi(strings.TrimSuffix(string(b), "\n"))
				if err != nil || !strings.HasSuffix(string(b), "\n") {
					t.Errorf("read %d: the file has %q", reads.Load(), b)
					return
				}
				// Cheap, and now and then exact: an unreaped process answers too.
				if syscall.Kill(pid, 0) != nil || reads.Load()%64 == 0 && !s.Has(pid) {
					// It may have ended since: then the file names another one.
					if again, _ := os.ReadFile(s.pidFile); string(again) == string(b) {
						t.Errorf("read %d: the file names process %d, which does not live", reads.Load(), pid)
						return
					}
				}
				named[i][pid]++
				reads.Add(1)
			}
		})
	}
	upgrades := 0
	for (reads.Load() < want || upgrades < 5) && !t.Failed() {
		s.mustUpgrade()
		upgrades++
	}
	close(stop)
	wg.Wait()
	// Every process that the file named has served.
	served := map[string]bool{}
	for _, l := range s.Lines() {
		if m := serving.FindStringSubmatch(l); m != nil {
			served[m[1]] = true
		}
	}
	for _, pids := range named {
		for pid := range pids {
			if !served[strconv.Itoa(pid)] {
				t.Errorf("the file named process %d, which never served", pid)
			}
		}
	}
	t.Logf("%d reads during %d upgrades", reads.Load(), upgrades)
}

// mustRefuse starts a server that must say this and exit with status 1.
func mustRefuse(t *testing.T, c proctest.Command, want string) {
	t.Helper()
	p := proctest.Start(t, c)
	p.WaitLine(want)
	if ws := p.WaitExit(p.Pid()); ws.ExitStatus() != 1 {
		t.Errorf("it ended with status %d, want 1", ws.ExitStatus())
	}
}

// onlyFile waits until nothing is beside the PID file but its lock: a process that
// has just put its own in place removes the one before when it accepts.
func onlyFile(t *testing.T, path string) {
	t.Helper()
	base := filepath.Base(path)
	var left []string
	gone := wait.Poll(func() bool {
		entries, err := os.ReadDir(filepath.Dir(path))
		if err != nil {
			t.Error(err)
		}
		left = nil
		for _, e := range entries {
			if name := e.Name(); name != base && name != "."+base+".lock" && strings.Contains(name, base) {
				left = append(left, name)
			}
		}
		return len(left) == 0
	})
	if !gone {
		t.Errorf("%q are left beside the PID file", left)
	}
}

func TestSecondInstanceIsRefused(t *testing.T) {
	s := startServer(t, "-probation", "0s")
	second := proctest.Command{
		Path: proctest.Build(t, serverPackage), Args: []string{"-http", "tcp=127.0.0.1:0", "-pidfile", s.pidFile},
	}
	for range 3 {
		pid := s.filePid()
		mustRefuse(t, second, fmt.Sprintf("already running as pid %d, .*%s", pid, s.pidFile))
		if got := s.filePid(); got != pid || s.servingPid() != pid {
			t.Errorf("the file names %d, and %d serves; want %d", got, s.servingPid(), pid)
		}
		onlyFile(t, s.pidFile)
		s.mustUpgrade()
	}
	// In probation both hold it.
	p := startServer(t, "-probation", "1h")
	p.Signal(p.Pid(), syscall.SIGUSR2)
	p.WaitLine("standing by")
	second.Args[3] = p.pidFile
	mustRefuse(t, second, fmt.Sprintf("already running as pid %d, ", p.filePid()))
	p.Signal(p.filePid(), syscall.SIGKILL)
	p.WaitLine("rolled back")
	mustRefuse(t, second, fmt.Sprintf("already running as pid %d, ", p.Pid()))
}

func TestPIDFileThatIsNotHeld(t *testing.T) {
	for name, content := range map[string]string{
		"stale": "999999999\n", "garbage": "\x00not a pid", "empty": "", "of a living process": fmt.Sprintln(os.Getpid()),
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "app.pid")
			if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
				t.Fatal(err)
			}
			s := startServer(t, "-pidfile", path, "-probation", "0s")
			s.pidFile = path
			if got := s.filePid(); got != s.Pid() {
				t.Errorf("the file names %d, want %d", got, s.Pid())
			}
			s.mustUpgrade()
		})
	}
	t.Run("of a killed server", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "app.pid")
		killed := startServer(t, "-pidfile", path)
		killed.Kill()
		if _, err := os.Stat(path); err != nil {
			t.Fatal(err)
		}
		s := startServer(t, "-pidfile", path, "-probation", "0s")
		s.pidFile = path
		if got := s.filePid(); got != s.Pid() {
			t.Errorf("the file names %d, want %d", got, s.Pid())
		}
	})
}

func TestPIDFileThatCannotBeWritten(t *testing.T) {
	binary := proctest.Build(t, serverPackage)
	command := func(path string) proctest.Command {
		return proctest.Command{Path: binary, Args: []string{"-http", "tcp=127.0.0.1:0", "-pidfile", path}}
	}
	t.Run("directory is missing", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "no", "app.pid")
		mustRefuse(t, command(path), "grace: PID file "+path+": .*no such file or directory")
	})
	t.Run("path is a directory", func(t *testing.T) {
		path := t.TempDir()
		mustRefuse(t, command(path), "grace: PID file "+path+": .*is a directory")
	})
	t.Run("directory can't be written", func(t *testing.T) {
		dir := t.TempDir()
		c := command(filepath.Join(dir, "app.pid"))
		if os.Getuid() == 0 { // root may write everywhere
			c.Credential = &syscall.Credential{Uid: 65534, Gid: 65534}
			for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
				if err := os.Chmod(d, 0o755); err != nil {
					t.Fatal(err)
				}
			}
		} else if err := os.Chmod(dir, 0o555); err != nil {
			t.Fatal(err)
		}
		mustRefuse(t, c, "grace: PID file "+filepath.Join(dir, "app.pid")+": .*permission denied")
	})
}

func TestPIDFileAtTheLastStop(t *testing.T) {
	t.Run("is removed", func(t *testing.T) {
		s := startServer(t, "-probation", "0s")
		s.mustUpgrade()
		s.Signal(s.filePid(), syscall.SIGTERM)
		s.WaitAllGone()
		if _, err := os.Lstat(s.pidFile); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the PID file is left (%v)", err)
		}
		onlyFile(t, s.pidFile)
	})
	t.Run("stays if it is another process's", func(t *testing.T) {
		s := startServer(t, "-probation", "0s")
		pid := s.mustUpgrade()
		if err := os.WriteFile(s.pidFile+".other", []byte("1\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(s.pidFile+".other", s.pidFile); err != nil {
			t.Fatal(err)
		}
		s.Signal(pid, syscall.SIGTERM)
		s.WaitAllGone()
		if got := s.filePid(); got != 1 {
			t.Errorf("the file names %d, want 1", got)
		}
	})
}

func TestPIDFileOfTheNewVersionIsAnother(t *testing.T) {
	t.Run("another path", func(t *testing.T) {
		later := filepath.Join(t.TempDir(), "later.pid")
		s := startServer(t, "-later-pidfile", later, "-probation", "0s")
		first := s.pidFile
		s.Signal(s.Pid(), syscall.SIGUSR2)
		s.WaitGone(s.Pid())
		pid := s.WaitAlone()
		if _, err := os.Lstat(first); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the old version's PID file is left (%v)", err)
		}
		s.pidFile = later
		if got := s.filePid(); got != pid {
			t.Errorf("the file names %d, want %d", got, pid)
		}
		s.mustUpgrade()
	})
	t.Run("another path, rolled back", func(t *testing.T) {
		later := filepath.Join(t.TempDir(), "later.pid")
		s := startServer(t, "-later-pidfile", later, "-probation", "1h")
		s.Signal(s.Pid(), syscall.SIGUSR2)
		s.WaitLine("standing by")
		if got := s.filePid(); got != s.Pid() {
			t.Errorf("in probation the old file names %d, want %d", got, s.Pid())
		}
		next := s.successor(s.Pid())
		s.Signal(next, syscall.SIGKILL)
		s.WaitLine("rolled back")
		if got := s.filePid(); got != s.Pid() || s.servingPid() != s.Pid() {
			t.Errorf("rolled back: the file names %d, and %d serves; want %d", got, s.servingPid(), s.Pid())
		}
		// The file of the dead process is stale, and does not refuse an upgrade.
		s.Signal(s.Pid(), syscall.SIGUSR2)
		s.WaitLine("standing by")
		s.Signal(s.Pid(), syscall.SIGTERM)
		s.WaitAllGone()
	})
	t.Run("none any more", func(t *testing.T) {
		s := startServer(t, "-later-pidfile", "-", "-probation", "0s")
		s.Signal(s.Pid(), syscall.SIGUSR2)
		s.WaitGone(s.Pid())
		s.WaitAlone()
		if _, err := os.Lstat(s.pidFile); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the old version's PID file is left (%v)", err)
		}
	})
}

// GRACE_PIDFILE counts if the program names no file; a relative one counts from
// the working directory of the first start.
func TestPIDFileFromTheEnvironment(t *testing.T) {
	dir := t.TempDir()
	p := proctest.Start(t, proctest.Command{
		Path: proctest.Build(t, serverPackage), Dir: dir, Env: []string{"GRACE_PIDFILE=env.pid"},
		Args: []string{"-http", "tcp=127.0.0.1:0", "-probation", "0s", "-chdir", t.TempDir()},
	})
	s := &server{t: t, Process: p, pidFile: filepath.Join(dir, "env.pid"), addr: p.WaitLine(`^listening http tcp (\S+)`)[1]}
	s.transport = &http.Transport{DisableKeepAlives: true}
	s.client = &http.Client{Transport: s.transport, Timeout: 2 * proctest.Limit}
	p.WaitLine(`msg="grace: serving"`)
	if got := s.filePid(); got != s.Pid() {
		t.Errorf("the file names %d, want %d", got, s.Pid())
	}
	s.mustUpgrade()
	s.childrenMustBeClean("with GRACE_PIDFILE")
	s.mustUpgrade()
	s.Signal(s.filePid(), syscall.SIGTERM)
	s.WaitAllGone()
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("%v is left, error %v", entries, err)
	}
}
