//go:build linux

package integration_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/julofinance/grace/v3/internal/proctest"
)

// What the next generation is started with.

// cwd is the working directory of a process.
func cwd(t testing.TB, pid int) string {
	t.Helper()
	dir, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// realTempDir is a directory's name without symlinks.
func realTempDir(t testing.TB) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// copyBinary makes a copy of the server's binary.
func copyBinary(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(proctest.Build(t, serverPackage))
	if err == nil {
		err = os.MkdirAll(filepath.Dir(path), 0o755)
	}
	must(t, err)
	must(t, proctest.WriteProgram(path, b, 0o755))
	return path
}

// A program that shows a title in ps writes it over its arguments; this one has
// changed its directory and its PATH as well before New.
func TestTitleOverArguments(t *testing.T) {
	dir := realTempDir(t)
	copyBinary(t, filepath.Join(dir, "app"))
	s := startServerAs(t, proctest.Command{Path: filepath.Join(dir, "app"), Argv0: "./app", Dir: dir, Args: []string{"-title", "-probation", "0"}})
	if got := cwd(t, s.Pid()); got != "/" {
		t.Fatalf("the first process is in %s", got)
	}
	pid := s.mustUpgrade()
	if got := s.mustGet("/args"); !strings.HasPrefix(got, "./app\n") || !strings.Contains(got, "\n"+s.pidFile+"\n") {
		t.Errorf("the new process has the arguments\n%s", got)
	}
	if got := cwd(t, pid); got != dir {
		t.Errorf("the new process is in %s, want %s", got, dir)
	}
}

// inDir starts the server by a shell that has changed to dir, and with that PWD.
func inDir(t testing.TB, script, dir, path string, args ...string) *server {
	t.Helper()
	return startServerAs(t, commandIn(script, dir, append([]string{path, ownArgs}, args...)))
}

func commandIn(script, dir string, argv []string) proctest.Command {
	return proctest.Command{Path: "/bin/sh", Args: append([]string{"-c", `cd "$1" && ` + script + ` shift && exec "$@"`, "sh", dir}, argv...)}
}

const gone = `the working directory of the first start can't be used`

func TestDirectoryIsGone(t *testing.T) {
	binary := proctest.Build(t, serverPackage)
	t.Run("since the start", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "release")
		must(t, os.Mkdir(dir, 0o755))
		s := startServerAs(t, proctest.Command{Path: binary, Dir: dir, Args: []string{"-probation", "0"}})
		must(t, os.Remove(dir))
		s.mustUpgrade()
		s.WaitLine(gone + `.* dir=` + dir)
		s.mustUpgrade()
		must(t, os.Mkdir(dir, 0o755)) // another one, by the same name
		if got := cwd(t, s.mustUpgrade()); got != dir {
			t.Errorf("the new process is in %s, want %s", got, dir)
		}
		if n := s.Count(gone); n != 2 {
			t.Errorf("%d upgrades were without the directory, want 2", n)
		}
	})
	t.Run("at the start", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "release")
		must(t, os.Mkdir(dir, 0o755))
		s := inDir(t, `rmdir "$1" &&`, dir, binary, "-probation", "0")
		s.mustUpgrade()
		s.mustUpgrade()
	})
	t.Run("and needed", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "release")
		must(t, os.Mkdir(dir, 0o755))
		s := inDir(t, `rmdir "$1" &&`, dir, binary, "-probation", "0", "-exec", "./app")
		r := s.upgrade()
		if !slices.Equal(r.Is, []string{"ErrStart"}) || !strings.Contains(r.Err, "working directory of the first start was gone") {
			t.Errorf("got %+v", r)
		}
		s.WaitLine(`upgrade failed.* hint="give Executable an absolute path`)
	})
	t.Run("and asked for", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "release")
		s := startServer(t, "-probation", "0", "-dir", dir)
		r := s.upgrade()
		if !slices.Equal(r.Is, []string{"ErrStart"}) || !strings.Contains(r.Err, dir) || !strings.Contains(r.Err, "no such file") {
			t.Errorf("got %+v", r)
		}
		s.WaitLine(`upgrade failed.* hint="make the directory`)
		must(t, os.Mkdir(dir, 0o755))
		if got := cwd(t, s.mustUpgrade()); got != dir {
			t.Errorf("the new process is in %s, want %s", got, dir)
		}
	})
}

// A master in a directory that is gone starts the server, and each that follows.
func TestDirectoryOfTheMasterIsGone(t *testing.T) {
	for name, master := range map[string]func(*testing.T) func([]string) proctest.Command{
		"socketmaster": func(t *testing.T) func([]string) proctest.Command {
			return socketmaster(t, "tcp://127.0.0.1:0", "exec %s", "-start", "50")
		},
		"start_server": func(t *testing.T) func([]string) proctest.Command {
			return startServerCommand(t, "tcp="+freeAddr(t), "exec %s")
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "release")
			must(t, os.Mkdir(dir, 0o755))
			build := master(t)
			m := startUnder(t, "tcp", func(args []string) proctest.Command {
				c := build(args)
				return commandIn(`rmdir "$1" &&`, dir, append([]string{c.Path}, c.Args...))
			})
			for range 2 {
				m.upgrade()
			}
			m.stop(syscall.SIGTERM)
		})
	}
}

// A new binary does not run in an old release without a word.
func TestDirectoryOfAnOldRelease(t *testing.T) {
	const word = `another release than the directory in which it starts`
	root := realTempDir(t)
	for _, release := range []string{"41", "42", "43"} {
		copyBinary(t, filepath.Join(root, release, "bin", "app"))
	}
	current := filepath.Join(root, "current")
	flip := func(t *testing.T, release string) {
		t.Helper()
		os.Remove(current)
		must(t, os.Symlink(filepath.Join(root, release), current))
	}
	app := filepath.Join(current, "bin", "app")
	for name, tc := range map[string]struct {
		start func(t *testing.T) *server
		dirs  []string // of the two generations that follow
	}{
		"without PWD": {func(t *testing.T) *server {
			return startServerAs(t, proctest.Command{Path: app, Dir: current, Args: []string{"-probation", "0"}})
		}, []string{"41", "41"}},
		"with PWD": {func(t *testing.T) *server { return inDir(t, "", current, app, "-probation", "0") }, []string{"42", "43"}},
		"with Dir": {func(t *testing.T) *server {
			return startServerAs(t, proctest.Command{Path: app, Dir: current, Args: []string{"-probation", "0", "-dir", current}})
		}, []string{"42", "43"}},
	} {
		t.Run(name, func(t *testing.T) {
			flip(t, "41")
			s := tc.start(t)
			for i, release := range []string{"42", "43"} {
				flip(t, release)
				pid := s.mustUpgrade()
				dir := filepath.Join(root, tc.dirs[i])
				if got := cwd(t, pid); got != dir {
					t.Errorf("the binary of %s is in %s, want %s", release, got, dir)
				}
				if tc.dirs[i] != release {
					s.WaitLine(word + `.* binary=` + filepath.Join(root, release, "bin", "app") + ` dir=` + dir)
				}
			}
			if n := s.Count(word); (n > 0) != (tc.dirs[0] == "41") {
				t.Errorf("%d lines say that the release is another one", n)
			}
		})
	}
}

// What the user has passed down belongs to every generation, under its number:
// the lock of flock(1), and what a supervisor wants to be told by.
func TestDescriptorsPassedDown(t *testing.T) {
	flock := lookPath(t, "flock")
	lock := filepath.Join(t.TempDir(), "lock")
	s := startServerAs(t, proctest.Command{Path: flock, Args: []string{"-F", lock, "/bin/sh", "-c",
		`exec 4>"$0.four" 5>"$0.five" 7>"$0.seven" 9>"$0.nine" && exec "$@"`, lock, proctest.Build(t, serverPackage), ownArgs, "-probation", "0", "-many", "5"}})
	want := []string{"4 " + lock + ".four", "5 " + lock + ".five", "7 " + lock + ".seven", "9 " + lock + ".nine"}
	passed := func() (all []string) {
		for _, l := range strings.Split(s.mustGet("/fds"), "\n") {
			if strings.Contains(l, lock) {
				all = append(all, l)
			}
		}
		return all
	}
	before := passed()
	for _, l := range want {
		if !slices.Contains(before, l) {
			t.Fatalf("the first process has\n%s", strings.Join(before, "\n"))
		}
	}
	for range 3 {
		s.mustUpgrade()
		if got := passed(); !slices.Equal(got, before) {
			t.Errorf("the new process has\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(before, "\n"))
		}
		if exec.Command(flock, "-n", lock, "true").Run() == nil {
			t.Error("the lock is free while the service runs")
		}
	}
	s.Signal(s.filePid(), syscall.SIGTERM)
	s.WaitAllGone()
	if err := exec.Command(flock, "-n", lock, "true").Run(); err != nil {
		t.Errorf("the lock is held after the service's end: %v", err)
	}
}

func TestBinaryIsBeingWritten(t *testing.T) {
	path := copyBinary(t, filepath.Join(t.TempDir(), "app"))
	s := startServerAs(t, proctest.Command{Path: proctest.Build(t, serverPackage), Args: []string{"-probation", "0", "-exec", path}})
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	must(t, err)
	defer f.Close()
	r := s.upgrade()
	if !slices.Equal(r.Is, []string{"ErrStart"}) || !strings.Contains(r.Err, "open for writing in another process") {
		t.Errorf("got %+v", r)
	}
	s.WaitLine(`upgrade failed.* hint="write a new binary beside the old one`)
	s.WaitLine(`the new binary is still open for writing; trying again`)
	result := s.beginUpgrade()
	s.WaitLine(`the new binary is still open for writing; trying again`)
	f.Close()
	if r := s.waitResult(result); r.Err != "" {
		t.Errorf("the deployer is through: %s", r.Err)
	}
	s.WaitAlone()
}

// A binary that is gone is said, and so is one that is going to be.
func TestBinaryIsGone(t *testing.T) {
	t.Run("since the start", func(t *testing.T) {
		path := copyBinary(t, filepath.Join(t.TempDir(), "app"))
		s := startServerAs(t, proctest.Command{Path: path, Args: []string{"-probation", "0"}})
		must(t, os.Remove(path))
		r := s.upgrade()
		if !slices.Equal(r.Is, []string{"ErrStart"}) || !strings.Contains(r.Err, "the binary is gone, or was moved") || !strings.Contains(r.Err, path) {
			t.Errorf("got %+v", r)
		}
		s.WaitLine(`upgrade failed.* hint="put the new binary at the path that the error names`)
		copyBinary(t, path)
		s.mustUpgrade()
	})
	t.Run("at the start", func(t *testing.T) {
		path := copyBinary(t, filepath.Join(t.TempDir(), "app"))
		s := startServerAs(t, proctest.Command{Path: "/bin/sh", Args: []string{"-c", `exec 9<"$1" && rm "$1" && shift && exec /proc/self/fd/9 "$@"`, "sh", path, ownArgs, "-probation", "0"}})
		s.WaitLine(`the binary of this process is gone; an upgrade needs one" from=\d+ path=` + path)
		copyBinary(t, path)
		s.mustUpgrade()
	})
	t.Run("go run", func(t *testing.T) {
		// What takes its time is in the cache then. The second time the binary is, too.
		if out, err := exec.Command("go", "build", "-o", os.DevNull, serverPackage).CombinedOutput(); err != nil {
			t.Fatalf("go build: %v\n%s", err, out)
		}
		for range 2 {
			s := startServerAs(t, proctest.Command{Path: lookPath(t, "go"), Args: []string{"run", serverPackage, ownArgs}})
			s.WaitLine(`this process can't be upgraded: go run has made its binary`)
			r := s.upgrade()
			if !slices.Equal(r.Is, []string{"ErrStart"}) || !strings.Contains(r.Err, "made by go run") {
				t.Errorf("got %+v", r)
			}
			s.WaitLine(`upgrade failed.* hint="make the binary with go build`)
			s.Signal(s.filePid(), syscall.SIGTERM)
			s.WaitAllGone()
		}
	})
}

// signalsOf is a set of signals of a process, see proc_pid_status(5).
func signalsOf(t testing.TB, pid int, set string) (bits uint64) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	must(t, err)
	_, rest, _ := strings.Cut(string(b), set+":")
	if _, err := fmt.Sscanf(rest, "%x", &bits); err != nil {
		t.Fatalf("process %d has no %s: %v", pid, set, err)
	}
	return bits
}

func lookPath(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil && inCI() {
		t.Fatal(err)
	}
	if err != nil {
		t.Skip(err)
	}
	return path
}

// A package that is initialised before ours and starts a child.
func TestChildOfAnInitFunction(t *testing.T) {
	s := startServerAs(t, proctest.Command{Path: proctest.Build(t, serverPackage), Args: []string{"-probation", "0"}, Env: []string{"TEST_EARLY=1"}})
	s.probed("first start")
	for generation := 2; generation < 4; generation++ {
		s.mustUpgrade()
		s.probed(fmt.Sprintf("generation %d", generation))
	}
}

// The errors of a new process that is not what it should be say what is wrong.
func TestAdviceOfANewProcess(t *testing.T) {
	t.Run("a script without exec", func(t *testing.T) {
		script := filepath.Join(t.TempDir(), "start")
		must(t, proctest.WriteProgram(script, fmt.Appendf(nil, "#!/bin/sh\n%s \"$@\"\nexit $?\n", proctest.Build(t, serverPackage)), 0o755))
		s := startServer(t, "-exec", script, "-probation", "0")
		s.upgrade()
		s.WaitLine(fmt.Sprintf(`server: exits.* a script must end in exec: grace: already running as pid %d`, s.Pid()))
	})
	t.Run("told to stop before Listen", func(t *testing.T) {
		script := filepath.Join(t.TempDir(), "start")
		s := startServer(t, "-probation", "0", "-exec", script)
		must(t, proctest.WriteProgram(script, fmt.Appendf(nil, "#!/bin/sh\nexec %s -http tcp=%s \"$@\"\n", proctest.Build(t, serverPackage), s.addr), 0o755))
		s.misbehave("stop@manifest")
		s.upgrade()
		s.WaitLine(fmt.Sprintf(`server: exits" .*err="grace: listen tcp %s: this process is stopping"`, s.addr))
	})
}
