//go:build linux

package integration_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/julofinance/grace/v3/internal/proctest"
)

const badchildPackage = "github.com/julofinance/grace/v3/integration_test/badchild"

// A release is a symlink to the server's binary, as a deployment flips it.
type release struct {
	t     testing.TB
	path  string
	good  string
	files int // made by file
}

func newRelease(t testing.TB) *release {
	t.Helper()
	r := &release{t: t, path: filepath.Join(t.TempDir(), "app"), good: proctest.Build(t, serverPackage)}
	r.flip(r.good)
	return r
}

// flip lets the release be another file.
func (r *release) flip(target string) {
	r.t.Helper()
	tmp := r.path + ".new"
	if err := os.Symlink(target, tmp); err != nil {
		r.t.Fatal(err)
	}
	if err := os.Rename(tmp, r.path); err != nil {
		r.t.Fatal(err)
	}
}

// file makes a file to flip to.
func (r *release) file(mode os.FileMode, text string) string {
	r.t.Helper()
	r.files++
	path := filepath.Join(filepath.Dir(r.path), fmt.Sprint("release-", r.files))
	if err := proctest.WriteProgram(path, []byte(text), 0o600); err != nil {
		r.t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		r.t.Fatal(err)
	}
	return path
}

// noGC keeps the garbage collector from closing what was forgotten.
var noGC = []string{"GOGC=off"}

// A footprint is what a failed upgrade must leave as it was.
type footprint struct {
	pid        int
	files      string
	goroutines string
}

func (s *server) footprint() footprint {
	s.t.Helper()
	return settled(s.look)
}

func (s *server) look() footprint {
	s.t.Helper()
	return footprint{s.servingPid(), s.files(), s.mustGet("/goroutines")}
}

// files lists the targets of the serving process's descriptors; sockets and
// pipes without their numbers.
func (s *server) files() string {
	s.t.Helper()
	var targets []string
	for _, line := range strings.Split(s.mustGet("/fds"), "\n") {
		_, target, _ := strings.Cut(line, " ")
		if kind, _, ok := strings.Cut(target, ":["); ok {
			target = kind
		}
		if strings.Contains(target, "app.pid") { // by whichever name it was opened
			target = "PID file"
		}
		targets = append(targets, target)
	}
	slices.Sort(targets)
	return strings.Join(targets, "\n")
}

// mustBe fails the test unless everything is as it was. What ends on its own,
// such as the connection of the last request, is waited for.
func (s *server) mustBe(before footprint) {
	s.t.Helper()
	var now footprint
	if !proctest.Poll(proctest.Limit, func() bool { now = s.look(); return now == before }) {
		s.t.Fatalf("a failed upgrade has left something: before\n%+v\nafter\n%+v\n%s", before, now, s.mustGet("/goroutines?stacks=1"))
	}
	if got := s.filePid(); got != before.pid {
		s.t.Errorf("the PID file names %d, want %d", got, before.pid)
	}
	if c := proctest.Children(before.pid); len(c) > 0 {
		s.t.Errorf("children are left, dead or alive: %+v", c)
	}
}

// A broken new version, and what Upgrade is to say of it.
type broken struct {
	name   string
	how    string // for misbehave
	flip   func(r *release) string
	query  string // for /upgrade
	during func(t *testing.T, s *server)
	is     string
	status string // how the new process ended; empty if none was started
	text   string // in the error
}

// mustFail upgrades to the broken version, and checks that all is as before.
func (b broken) mustFail(t *testing.T, s *server, r *release) {
	s.t = t
	before := s.footprint()
	errorLines := fmt.Sprintf(`level=ERROR .*from=%d\b`, before.pid)
	logged := s.Count(errorLines)
	if b.how != "" {
		s.misbehave(b.how)
	}
	if b.flip != nil {
		r.flip(b.flip(r))
		defer r.flip(r.good)
	}
	l := s.startLoad(1)
	var got upgradeResult
	if b.during != nil {
		c := s.beginUpgrade()
		b.during(t, s)
		got = s.waitResult(c)
	} else {
		got = s.upgrade(b.query)
	}
	l.mustLoseNothing(t)
	if !slices.Equal(got.Is, []string{b.is}) || !got.Upgrade || got.Status != b.status || (got.Pid != 0) != (b.status != "") || !strings.Contains(got.Err, b.text) {
		t.Errorf("Upgrade returned %+v; want %s, an UpgradeError, status %q, text %q", got, b.is, b.status, b.text)
	}
	if n := strings.Count(got.Err, "grace:"); n != 1 {
		t.Errorf("the error %q says grace: %d times, want once", got.Err, n)
	}
	s.mustBe(before)
	if n := s.Count(errorLines) - logged; n != 1 || s.Count(errorLines+`.* hint="`) != s.Count(errorLines) {
		t.Errorf("%d error lines were logged, want one, with what to do:\n%s", n, strings.Join(s.Lines(), "\n"))
	}
	if len(l.pids) != 1 || l.pids[before.pid] == 0 {
		t.Errorf("requests were answered by %v, want by %d alone", l.pids, before.pid)
	}
}

// badchild gives a script that starts badchild in the given mode.
func badchild(t *testing.T, mode string) func(*release) string {
	t.Helper()
	path := proctest.Build(t, badchildPackage)
	return func(r *release) string {
		return r.file(0o755, fmt.Sprintf("#!/bin/sh\nBADCHILD=%s exec %s\n", mode, path))
	}
}

func fileOf(mode os.FileMode, text string) func(*release) string {
	return func(r *release) string { return r.file(mode, text) }
}

func is(target string) func(*release) string { return func(*release) string { return target } }

// TestBrokenVersion tries one broken version after the other on one server, and
// a good one at the end.
func TestBrokenVersion(t *testing.T) {
	r := newRelease(t)
	s := startServerAs(t, proctest.Command{Path: r.path, Args: []string{"-probation", "0"}, Env: noGC})
	for _, b := range []broken{
		{name: "exits at once", how: "exit=3@start", is: "ErrExited", status: "exit status 3"},
		{name: "exits at once with 0", how: "exit=0@start", is: "ErrExited", status: "exit status 0"},
		{name: "exits after the manifest", how: "exit=4@manifest", is: "ErrExited", status: "exit status 4"},
		{name: "exits before ready", how: "exit=5@check", is: "ErrExited", status: "exit status 5"},
		{name: "ready check fails", how: "fail", is: "ErrExited", status: "exit status 1", text: "not today"},
		{name: "is killed", how: "pause@start", is: "ErrExited", status: "signal: killed", during: killPaused},
		{name: "is killed before ready", how: "pause@check", is: "ErrExited", status: "signal: killed", during: killPaused},
		{name: "true", flip: is("/bin/true"), is: "ErrExited", status: "exit status 0"},
		{name: "shell script", flip: fileOf(0o755, "#!/bin/sh\nexit 9\n"), is: "ErrExited", status: "exit status 9"},
		{name: "script leaves a child", flip: fileOf(0o755, "#!/bin/sh\nsleep 1000 &\necho sleeper pid=$!\n"), is: "ErrExited", status: "exit status 0"},
		{name: "not executable", flip: fileOf(0o644, "#!/bin/sh\n"), is: "ErrStart", text: "permission denied"},
		{name: "not a program", flip: fileOf(0o755, "\x7fELF, but no more"), is: "ErrStart", text: "exec format error"},
		{name: "no interpreter", flip: fileOf(0o755, "#!/no/such/shell\n"), is: "ErrStart", text: "no such file"},
		{name: "missing", flip: is("/no/such/file"), is: "ErrStart", text: "no such file"},
		{name: "a directory", flip: is("/"), is: "ErrStart", text: "directory"},
		{name: "writes garbage", flip: badchild(t, "garbage"), is: "ErrProtocol", status: "signal: killed", text: `"hello, world\n"`},
		{name: "writes garbage without end", flip: badchild(t, "endless-garbage"), is: "ErrProtocol", status: "signal: killed"},
		{name: "other version", flip: badchild(t, "other-version"), is: "ErrProtocol", status: "signal: killed", text: `"ready 99\n"`},
		{name: "closes the pipe", flip: badchild(t, "close-pipe"), is: "ErrProtocol", status: "signal: killed", text: "without a word"},
		{name: "closes the pipe and exits", flip: badchild(t, "close-pipe-and-exit"), is: "ErrExited", status: "exit status 5"},
		{name: "closes the channel", flip: badchild(t, "close-channel"), is: "ErrProtocol", status: "signal: killed", text: "control channel"},
		{name: "garbage on the channel", flip: badchild(t, "garbage-on-channel"), is: "ErrProtocol", status: "signal: killed", text: "control channel"},
		{name: "bad claims", flip: badchild(t, "bad-claims"), is: "ErrProtocol", status: "signal: killed", text: "control channel"},
		{name: "ready and exits", flip: badchild(t, "ready-and-exit"), is: "ErrExited", status: "exit status 6"},
	} {
		if !t.Run(b.name, func(t *testing.T) { b.mustFail(t, s, r) }) {
			return
		}
	}
	s.t = t
	killSleepers(s)
	s.mustUpgrade()
}

// TestHangingVersion tries new versions that must be killed at the ready timeout.
func TestHangingVersion(t *testing.T) {
	for _, b := range []broken{
		{name: "at once", how: "hang@start"},
		{name: "after the manifest", how: "hang@manifest"},
		{name: "in the ready check", how: "hang@check"},
		{name: "script with a sleeping child", flip: fileOf(0o755, "#!/bin/sh\nsleep 1000 &\necho sleeper pid=$!\nwait\n")},
		{name: "half a line", flip: badchild(t, "half-line")},
		{name: "ready without claims", flip: badchild(t, "ready-without-claims")},
		{name: "claims nonsense and hangs", flip: badchild(t, "claims-out-of-range")},
		{name: "accepts before it may", flip: badchild(t, "accepting-at-once")},
		{name: "unknown message", flip: badchild(t, "unknown-message")},
		{name: "says stop", flip: badchild(t, "stop-at-once")},
	} {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			r := newRelease(t)
			s := startServerAs(t, proctest.Command{Path: r.path, Args: []string{"-probation", "0", "-ready", "1500ms"}})
			b.is, b.status, b.text = "ErrReadyTimeout", "signal: killed", "killed after 1.5s"
			b.mustFail(t, s, r)
			killSleepers(s)
		})
	}
}

// TestNoDescriptor upgrades with 0, 1, 2… descriptors to be had, until it works.
func TestNoDescriptor(t *testing.T) {
	r := newRelease(t)
	s := startServerAs(t, proctest.Command{Path: r.path, Args: []string{"-probation", "0"}, Env: noGC})
	for n := 0; ; n++ {
		before := s.footprint()
		got := s.upgrade(fmt.Sprintf("nofile=%d", n))
		if got.Err == "" {
			if n < 4 {
				t.Errorf("Upgrade worked with %d descriptors to be had", n)
			}
			s.WaitGone(before.pid)
			return
		}
		if !slices.Equal(got.Is, []string{"ErrStart"}) || !got.Upgrade || got.Pid != 0 || !strings.Contains(got.Err, "too many open files") {
			t.Fatalf("with %d descriptors to be had Upgrade returned %+v; want ErrStart: too many open files", n, got)
		}
		s.mustBe(before)
		if want := n + 1; s.Count(`level=ERROR.* hint="`) != want || s.Count(`level=ERROR`) != want {
			t.Errorf("after %d failed upgrades %d error lines were logged; want one for each", want, s.Count("level=ERROR"))
		}
	}
}

// TestNoProcess upgrades when no process can be started.
func TestNoProcess(t *testing.T) {
	r := newRelease(t)
	c := proctest.Command{Path: r.path, Args: []string{"-probation", "0"}, Env: noGC}
	if os.Getuid() == 0 { // root has no such limit
		c.Credential = &syscall.Credential{Uid: 54321, Gid: 54321, NoSetGroups: true}
		for d := filepath.Dir(r.path); strings.HasPrefix(d, os.TempDir()+"/"); d = filepath.Dir(d) {
			os.Chmod(d, 0o755)
		}
	}
	s := startServerAs(t, c)
	s.mustGet("/slow?ms=1")
	// None at all, and so few that the new process could take the last one of
	// those that this one needs to go on.
	for _, more := range []int{0, 1, 5} {
		broken{query: fmt.Sprintf("nproc=%d", more), is: "ErrStart", text: "RLIMIT_NPROC of user 54321 allows"}.mustFail(t, s, r)
	}
	if s.Count(`hint="raise the limit that the error names`) != 3 {
		t.Error("the log does not say what to do")
	}
	s.mustUpgrade()
}

// TestNoRoomInControlGroup upgrades in a control group that has room for this process, and
// not for another one.
func TestNoRoomInControlGroup(t *testing.T) {
	group := controlGroup(t)
	r := newRelease(t)
	s := startServerAs(t, proctest.Command{Path: "/bin/sh", Args: []string{"-c", `echo $$ >"$1/cgroup.procs" && shift && exec "$@"`, "sh", group, r.path, ownArgs, "-probation", "0"}})
	s.mustGet("/slow?ms=1")
	current, err := os.ReadFile(group + "/pids.current")
	if err != nil {
		t.Fatal(err)
	}
	limit := fmt.Sprint(atoi(t, strings.TrimSpace(string(current))) + 8)
	must(t, os.WriteFile(group+"/pids.max", []byte(limit), 0))
	broken{is: "ErrStart", text: group + "/pids.max allows " + limit + " threads"}.mustFail(t, s, r)
	must(t, os.WriteFile(group+"/pids.max", []byte("max"), 0))
	s.mustUpgrade()
}

// controlGroup makes one that limits the number of threads.
func controlGroup(t *testing.T) string {
	t.Helper()
	group := "/sys/fs/cgroup"
	if _, err := os.Stat(group + "/pids"); err == nil { // the first version
		group += "/pids"
	}
	group += fmt.Sprintf("/grace-test-room-%d", os.Getpid())
	if err := os.Mkdir(group, 0o755); err != nil {
		t.Skip("this test needs a control group of its own: ", err)
	}
	t.Cleanup(func() {
		proctest.WaitFor(t, proctest.Limit, "the control group to be empty", func() bool { return os.Remove(group) == nil })
	})
	if _, err := os.Stat(group + "/pids.max"); err != nil {
		t.Skip("control groups do not limit the number of threads here: ", err)
	}
	return group
}

// killPaused kills the new process when it has come to the step at which it pauses.
func killPaused(t *testing.T, s *server) {
	pid := atoi(t, s.WaitLine(`^paused at \S+ pid=(\d+)`)[1])
	s.Signal(pid, syscall.SIGKILL)
}

// killSleepers ends what a script has left running: it is no child of a process of this
// test any more.
func killSleepers(s *server) {
	serving := s.servingPid()
	for _, pid := range s.Living() {
		if pid != serving {
			s.Signal(pid, syscall.SIGKILL)
		}
	}
	s.WaitAlone()
}
