//go:build linux

package integration_test

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/julofinance/grace/v3/internal/proctest"
)

// injectInto lets system calls of a running process fail or wait, or kills it in
// one; with a path, only those that name it.
func injectInto(t *testing.T, pid int, inject, path string) *proctest.Process {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("to trace a process that runs needs root")
	}
	strace := needProgram(t, "strace", "strace")
	args := []string{"-f", "-o", filepath.Join(t.TempDir(), "trace"), "-e", "signal=none", "-e", "inject=" + inject, "-p", fmt.Sprint(pid)}
	if path != "" {
		args = append(args, "-P", path)
	}
	p := proctest.Start(t, proctest.Command{Path: strace, Args: args})
	p.WaitLine(`Process \d+ attached`)
	return p
}

func (s *server) lockFile() string {
	return filepath.Join(filepath.Dir(s.pidFile), "."+filepath.Base(s.pidFile)+".lock")
}

// waitFilePid waits until the PID file names a process.
func (s *server) waitFilePid(want int) {
	s.t.Helper()
	proctest.WaitFor(s.t, proctest.Limit, fmt.Sprintf("process %d in the PID file", want), func() bool {
		b, _ := os.ReadFile(s.pidFile)
		return string(b) == fmt.Sprintln(want)
	})
}

// A roll back that can't write the PID file tries again until it can.
func TestPIDFileIsTakenBackAtLast(t *testing.T) {
	for name, tc := range map[string]struct {
		call  string
		errno syscall.Errno
	}{
		"no space":       {"/^rename", syscall.ENOSPC},
		"read-only":      {"/^rename", syscall.EROFS},
		"no descriptors": {"/^open", syscall.EMFILE},
	} {
		t.Run(name, func(t *testing.T) {
			s := startServer(t, "-probation", "1h")
			s.Signal(s.Pid(), syscall.SIGUSR2)
			s.WaitLine("standing by")
			next := s.filePid()
			names := map[syscall.Errno]string{syscall.ENOSPC: "ENOSPC", syscall.EROFS: "EROFS", syscall.EMFILE: "EMFILE"}
			// strace counts for each thread by itself.
			injectInto(t, s.Pid(), fmt.Sprintf("%s:error=%s:when=1..2", tc.call, names[tc.errno]),
				filepath.Join(filepath.Dir(s.pidFile), fmt.Sprintf(".app.pid.%d", s.Pid())))
			s.Signal(next, syscall.SIGKILL)
			s.WaitLine("PID file can't be taken back.*" + tc.errno.Error())
			s.WaitLine("rolled back")
			s.WaitLine("the PID file names this process again")
			if got := s.filePid(); got != s.Pid() {
				t.Errorf("the PID file names %d, want %d", got, s.Pid())
			}
			onlyFile(t, s.pidFile)
		})
	}
}

// pauseNew begins an upgrade, and gives the pid of the new process, which waits
// for SIGUSR1 before it says that it is ready.
func (s *server) pauseNew() int {
	s.t.Helper()
	s.misbehave("pause@listen")
	s.Signal(s.Pid(), syscall.SIGUSR2)
	return atoi(s.t, s.WaitLine(`paused at listen pid=(\d+)`)[1])
}

// The new process is killed when it has put its pid in place and does not accept yet.
func TestPIDFileIsTakenBackFromNewThatNeverAccepted(t *testing.T) {
	s := startServer(t, "-probation", "1h")
	next := s.pauseNew()
	strace := injectInto(t, next, "/^rename:delay_exit=600000000", "")
	s.Signal(next, syscall.SIGUSR1)
	s.waitFilePid(next)
	s.Signal(next, syscall.SIGKILL)
	strace.Kill() // it would wait
	s.WaitLine("upgrade failed")
	s.waitFilePid(s.Pid())
	if got := s.servingPid(); got != s.Pid() {
		t.Errorf("%d serves, want %d", got, s.Pid())
	}
	// All is as before.
	second := proctest.Command{Path: proctest.Build(t, serverPackage), Args: []string{"-http", "tcp=127.0.0.1:0", "-pidfile", s.pidFile}}
	mustRefuse(t, second, fmt.Sprintf("already running as pid %d, ", s.Pid()))
}

// leftovers are the files of a PID file that was not put in place.
func leftovers(t *testing.T, pidFile string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(filepath.Dir(pidFile), "."+filepath.Base(pidFile)+".[0-9]*"))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// What a process leaves that is killed before it puts its pid in place goes.
func TestPIDFileKilledBeforeItIsInPlace(t *testing.T) {
	t.Run("at the first start", func(t *testing.T) {
		dir := t.TempDir()
		path := filepath.Join(dir, "app.pid")
		args := []string{"-http", "tcp=127.0.0.1:0", "-pidfile", path}
		p := proctest.Start(t, underStrace(t, []string{"-o", filepath.Join(t.TempDir(), "trace"), "-e", "inject=/^rename:signal=KILL"},
			proctest.Build(t, serverPackage), args...))
		p.WaitAllGone()
		if n := len(leftovers(t, path)); n != 1 {
			t.Fatalf("%d files are left, want 1: it shows nothing", n)
		}
		stranger := filepath.Join(dir, ".app.pid.old")
		writeFile(t, stranger, "", 0o644)
		s := startServer(t, "-pidfile", path)
		if left := leftovers(t, path); len(left) > 0 {
			t.Errorf("%q are left", left)
		}
		if _, err := os.Stat(stranger); err != nil {
			t.Errorf("a file that is not ours was removed: %v", err)
		}
		s.Signal(s.Pid(), syscall.SIGTERM)
		s.WaitAllGone()
	})
	t.Run("at an upgrade", func(t *testing.T) {
		s := startServer(t, "-probation", "1h")
		next := s.pauseNew()
		injectInto(t, next, "/^rename:signal=KILL", "")
		s.Signal(next, syscall.SIGUSR1)
		s.WaitLine("upgrade failed")
		s.waitFilePid(s.Pid())
		proctest.WaitFor(t, proctest.Limit, "what the new process has left to be removed", func() bool { return len(leftovers(t, s.pidFile)) == 0 })
		onlyFile(t, s.pidFile)
	})
}

// The old process keeps the lock while the new one has the name: when the new one dies,
// and the old one can't do anything yet, no third process can come in.
func TestPIDFileLockOutlivesNew(t *testing.T) {
	s := startServer(t, "-probation", "1h")
	s.Signal(s.Pid(), syscall.SIGUSR2)
	s.WaitLine("standing by")
	next := s.filePid()
	s.Halt(s.Pid())
	t.Cleanup(func() { syscall.Kill(s.Pid(), syscall.SIGCONT) })
	s.Signal(next, syscall.SIGKILL)
	proctest.WaitFor(t, proctest.Limit, "the end of the new process", func() bool { st, ok := proctest.ReadStat(next); return !ok || st.Dead() })
	mustRefuse(t, proctest.Command{
		Path: proctest.Build(t, serverPackage), Args: []string{"-http", "tcp=127.0.0.1:0", "-pidfile", s.pidFile},
	}, "already running.*"+s.pidFile)
	s.Signal(s.Pid(), syscall.SIGCONT)
	s.WaitLine("rolled back")
	s.waitFilePid(s.Pid())
}

// A user that may only read the PID file, and its directory, can lock both. That
// refuses neither a start after a crash nor an upgrade.
func TestPIDFileLockedByAStranger(t *testing.T) {
	needProgram(t, "flock", "util-linux")
	s := startServer(t, "-probation", "1ms")
	for d := filepath.Dir(s.pidFile); d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	lock := func() {
		t.Helper()
		c := proctest.Command{Path: "/bin/sh", Args: []string{"-c", `
			(: <"$2") 2>/dev/null && [ "$(id -u)" != "$3" ] && echo opened the lock
			exec 8<"$1" && flock -n 8 && exec 9<"$(dirname "$1")" && flock -n 9 && echo locked
			read line`, "sh", s.pidFile, s.lockFile(), fmt.Sprint(os.Getuid())}}
		if os.Getuid() == 0 {
			c.Credential = &syscall.Credential{Uid: 65534, Gid: 65534}
		}
		p := proctest.Start(t, c)
		p.WaitLine("^locked$")
		if p.Count("opened the lock") > 0 {
			t.Errorf("another user can open the lock's file")
		}
		t.Cleanup(p.Kill)
	}
	lock()
	s.mustUpgrade()
	s.Signal(s.filePid(), syscall.SIGKILL)
	s.WaitAllGone()
	again := startServer(t, "-pidfile", s.pidFile, "-probation", "1ms")
	again.pidFile = s.pidFile
	if got := again.filePid(); got != again.Pid() {
		t.Errorf("the PID file names %d, want %d", got, again.Pid())
	}
	again.mustUpgrade()
}

// Nothing that is held open for long keeps the file system from being mounted
// read-only, neither of the process that serves nor of one that drains.
func TestPIDFileOnAFileSystemThatBecomesReadOnly(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("to mount needs root")
	}
	unshare, nsenter := needProgram(t, "unshare", "util-linux"), needProgram(t, "nsenter", "util-linux")
	dir := t.TempDir()
	p := proctest.Start(t, proctest.Command{Path: unshare, Args: []string{"--mount", "/bin/sh", "-c", `mount -t tmpfs grace "$0" && exec "$@"`, dir,
		proctest.Build(t, serverPackage), "-http", "tcp=127.0.0.1:0", "-pidfile", filepath.Join(dir, "app.pid"), "-probation", "1ms"}})
	s := &server{t: t, Process: p, addr: p.WaitLine(`^listening http tcp (\S+)`)[1]}
	s.client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 2 * proctest.Limit}
	p.WaitLine(`grace: serving`)
	remount := func(how string, pid int) {
		t.Helper()
		if out, err := run(t, nsenter, fmt.Sprintf("--mount=/proc/%d/ns/mnt", pid), "mount", "-o", "remount,"+how, dir); err != nil {
			t.Fatalf("remount,%s: %v, %s", how, err, out)
		}
	}
	h := s.hold()
	if r := s.upgrade(); r.Err != "" {
		t.Fatalf("Upgrade: %+v", r)
	}
	pid := s.successor(h.pid)
	remount("ro", pid) // one drains, one serves
	h.release()
	s.WaitGone(h.pid)
	if r := s.upgrade(); !strings.Contains(r.Err, syscall.EROFS.Error()) {
		t.Errorf("Upgrade where the PID file can't be written: %+v, want %v", r, syscall.EROFS)
	}
	remount("rw", pid)
	if r := s.upgrade(); r.Err != "" {
		t.Errorf("Upgrade: %+v", r)
	}
	s.WaitGone(pid)
}

// vfat, for one, has no hard links.
func TestPIDFileWithoutHardLinks(t *testing.T) {
	c := underStrace(t, []string{"-o", filepath.Join(t.TempDir(), "trace"), "-e", "inject=/^link:error=EPERM"}, proctest.Build(t, serverPackage))
	run := script(t, `exec %s %s "$@"`, c.Path, strings.Join(c.Args, " "))
	s := startServerAs(t, proctest.Command{Path: run, Args: []string{"-probation", "1ms"}})
	pid := s.mustUpgradeTraced()
	s.Signal(pid, syscall.SIGTERM)
	s.WaitAllGone()
	if _, err := os.Lstat(s.pidFile); !os.IsNotExist(err) {
		t.Errorf("the PID file is left: %v", err)
	}
}

// mustUpgradeTraced is mustUpgrade where strace is left beside the server.
func (s *server) mustUpgradeTraced() int {
	s.t.Helper()
	old := s.filePid()
	s.Signal(old, syscall.SIGUSR2)
	s.WaitGone(old)
	pid := s.filePid()
	if pid == old || pid != s.servingPid() {
		s.t.Fatalf("the PID file names %d; %d was before", pid, old)
	}
	return pid
}

// What is no regular file is refused, and stays what it was, for every user.
func TestPIDFileThatIsNoRegularFile(t *testing.T) {
	makers := map[string]struct {
		make func(path string) error
		want string
	}{
		"dangling link":  {func(p string) error { return os.Symlink("nowhere", p) }, "symbolic link, to nowhere"},
		"link to a file": {func(p string) error { writeFile(t, p+".target", "1\n", 0o644); return os.Symlink(p+".target", p) }, "symbolic link"},
		"link to itself": {func(p string) error { return os.Symlink(p, p) }, "symbolic link"},
		"directory":      {func(p string) error { return os.Mkdir(p, 0o755) }, "is a directory"},
		"named pipe":     {func(p string) error { return syscall.Mkfifo(p, 0o666) }, "no regular file"},
		"socket":         {func(p string) error { return syscall.Mknod(p, syscall.S_IFSOCK|0o666, 0) }, "no regular file"},
		"device":         {func(p string) error { return syscall.Mknod(p, syscall.S_IFCHR|0o666, 1<<8|3) }, "no regular file"},
	}
	users := map[string]*syscall.Credential{"ourselves": nil}
	if os.Getuid() == 0 {
		users["another user"] = &syscall.Credential{Uid: 65534, Gid: 65534}
	}
	for name, tc := range makers {
		for user, credential := range users {
			for where, file := range map[string]string{"PID file": "app.pid", "lock": ".app.pid.lock"} {
				t.Run(name+"/"+user+"/"+where, func(t *testing.T) {
					dir := t.TempDir()
					for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
						if err := os.Chmod(d, 0o755); err != nil {
							t.Fatal(err)
						}
					}
					if err := os.Chmod(dir, 0o777); err != nil { // may rename there
						t.Fatal(err)
					}
					path := filepath.Join(dir, file)
					if err := tc.make(path); err != nil {
						if name == "device" && os.Getuid() != 0 {
							t.Skip("to make a device needs root")
						}
						t.Fatal(err)
					}
					if file == "app.pid" && name == "link to a file" {
						defer func() {
							if b, err := os.ReadFile(path + ".target"); err != nil || string(b) != "1\n" {
								t.Errorf("what the link points to has %q, error %v", b, err)
							}
						}()
					}
					before, err := os.Lstat(path)
					if err != nil {
						t.Fatal(err)
					}
					want := "grace: PID file " + filepath.Join(dir, "app.pid") + ": .*"
					if file == "app.pid" {
						want += tc.want
					}
					mustRefuse(t, proctest.Command{
						Path: proctest.Build(t, serverPackage), Args: []string{"-http", "tcp=127.0.0.1:0", "-pidfile", filepath.Join(dir, "app.pid")}, Credential: credential,
					}, want)
					after, err := os.Lstat(path)
					if err != nil || !os.SameFile(before, after) || before.Mode() != after.Mode() {
						t.Errorf("it was %v, and is %v, error %v", before, after, err)
					}
				})
			}
		}
	}
}

// The directory became a symbolic link, or goes by another name in the new
// version: it is the same file.
func TestPIDFileOfTwoSpellings(t *testing.T) {
	root := t.TempDir()
	real, link := filepath.Join(root, "real"), filepath.Join(root, "run")
	if err := os.Mkdir(link, 0o755); err != nil {
		t.Fatal(err)
	}
	s := startServer(t, "-pidfile", filepath.Join(link, "app.pid"), "-later-pidfile", real+"/../real//app.pid", "-probation", "1ms")
	s.pidFile = filepath.Join(link, "app.pid")
	if err := os.Rename(link, real); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("real", link); err != nil {
		t.Fatal(err)
	}
	s.mustUpgrade()
	s.mustUpgrade()
	for _, dir := range []string{real, link} {
		mustRefuse(t, proctest.Command{
			Path: proctest.Build(t, serverPackage), Args: []string{"-http", "tcp=127.0.0.1:0", "-pidfile", filepath.Join(dir, "app.pid")},
		}, fmt.Sprintf("already running as pid %d, ", s.filePid()))
	}
	s.Signal(s.filePid(), syscall.SIGTERM)
	s.WaitAllGone()
	if entries, err := os.ReadDir(real); err != nil || len(entries) > 0 {
		t.Errorf("%v is left, error %v", entries, err)
	}
}

// Another program that was given the path by mistake, or a cleaner of temporary
// files, removes or overwrites the file.
func TestPIDFileThatOthersTouch(t *testing.T) {
	s := startServer(t, "-probation", "1ms")
	second := proctest.Command{
		Path: proctest.Build(t, serverPackage), Args: []string{"-http", "tcp=127.0.0.1:0", "-pidfile", s.pidFile},
	}
	pid := s.mustUpgrade()
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		s.waitFilePid(pid)
		mustRefuse(t, second, fmt.Sprintf("already running as pid %d, ", pid))
		s.WaitLine("the PID file names this process again")
		onlyFile(t, s.pidFile)
	}
	must("failed start of another program", exec.Command("sh", "-c", `echo $$ >"$0"; rm "$0"`, s.pidFile).Run())
	must("removed", os.Remove(s.pidFile))
	must("dead pid", os.WriteFile(s.pidFile, []byte("999999999\n"), 0o644))
	must("no pid", os.WriteFile(s.pidFile, nil, 0o644))

	if err := os.Remove(s.lockFile()); err != nil {
		t.Fatal(err)
	}
	proctest.WaitFor(t, proctest.Limit, "a new lock", func() bool { _, err := os.Lstat(s.lockFile()); return err == nil })
	mustRefuse(t, second, fmt.Sprintf("already running as pid %d, ", pid))
	pid = s.mustUpgrade()

	// One that lives is left in peace.
	if err := os.WriteFile(s.pidFile, fmt.Appendln(nil, os.Getpid()), 0o644); err != nil {
		t.Fatal(err)
	}
	s.WaitLine(fmt.Sprintf("another program has put the number of process %d there", os.Getpid()))
	s.Signal(pid, syscall.SIGTERM)
	s.WaitAllGone()
	s.waitFilePid(os.Getpid())
	onlyFile(t, s.pidFile)
}
