//go:build linux

package integration_test

import (
	"context"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/proctest"
)

// run runs a command to its end and gives what it has printed.
func run(t testing.TB, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), proctest.Limit)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// example gives a file of example/supervisors with other paths.
func example(t testing.TB, name string, replace ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("../example/supervisors", name))
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	for i := 0; i < len(replace); i += 2 {
		if !strings.Contains(text, replace[i]) {
			t.Fatalf("%s has no %q", name, replace[i])
		}
		text = strings.ReplaceAll(text, replace[i], replace[i+1])
	}
	return text
}

func writeFile(t testing.TB, path, text string, mode os.FileMode) string {
	t.Helper()
	if err := proctest.WriteProgram(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	return path
}

// follow is the script grace-follow.
func follow(t testing.TB) string {
	t.Helper()
	path, err := filepath.Abs("../example/supervisors/grace-follow")
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// A supervised server is one that supervisord, runit or monit watches.
type supervised struct {
	*mastered
	status func() string  // a line that must not change as long as it serves
	halt   func()         // has it stop the server
	end    syscall.Signal // ends it; 0: halt does
	sees   func() int     // the pid that it watches, if it reads the PID file
	before string         // its status before the upgrades
	deaf   bool           // when it stops the server it does not wait, nor read what that says
}

// upgrade20 upgrades under load; the supervisor must see nothing of it.
func (s *supervised) upgrade20() {
	s.t.Helper()
	s.before = s.status()
	s.underLoad(func() {
		for range upgrades {
			s.upgrade()
		}
	})
	s.mustSeeNoChange()
}

// mustSeeNoChange: the supervisor says what it has said before the upgrades.
func (s *supervised) mustSeeNoChange() {
	s.t.Helper()
	if now := s.status(); now != s.before {
		s.t.Errorf("the supervisor says %q, and said %q before the upgrades", now, s.before)
	}
}

// crash kills the server; the supervisor starts another.
func (s *supervised) crash() {
	s.t.Helper()
	s.Signal(s.pid(), syscall.SIGKILL)
	s.waitNewest()
	proctest.WaitFor(s.t, proctest.Limit, "an answer of the new process", func() bool {
		got, err := s.get("/pid")
		return err == nil && atoi(s.t, got) == s.pid()
	})
	s.pids = s.pids[len(s.pids)-1:] // the one before has no last words
}

// startSupervisord starts supervisord with a program section.
func startSupervisord(t *testing.T, conf func(server []string) string) *supervised {
	t.Helper()
	path := needProgram(t, "supervisord", "supervisor")
	dir := shortDir(t)
	main := filepath.Join(dir, "supervisord.conf")
	ctl := func(args ...string) string {
		out, _ := run(t, "supervisorctl", append([]string{"-c", main}, args...)...)
		return out
	}
	m := startUnder(t, "tcp", func(serverArgs []string) proctest.Command {
		program := conf(append([]string{proctest.Build(t, serverPackage)}, serverArgs...))
		writeFile(t, main, strings.NewReplacer("$dir", dir).Replace(`[supervisord]
nodaemon=true
user=root
logfile=/dev/null
logfile_maxbytes=0
pidfile=$dir/supervisord.pid
[unix_http_server]
file=$dir/sock
[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface
[supervisorctl]
serverurl=unix://$dir/sock
`)+program, 0o644)
		return proctest.Command{Path: path, Args: []string{"-n", "-c", main}}
	})
	pid := regexp.MustCompile(`^hello\s+RUNNING\s+pid \d+`)
	s := &supervised{mastered: m, end: syscall.SIGTERM, status: func() string { return pid.FindString(ctl("status", "hello")) }}
	s.halt = func() {
		if out := ctl("stop", "hello"); !strings.Contains(out, "stopped") {
			t.Errorf("supervisorctl stop said %q", out)
		}
	}
	proctest.WaitFor(t, proctest.Limit, "supervisord to call it running", func() bool { return s.status() != "" })
	return s
}

// finish stops the server, then the supervisor.
func (s *supervised) finish() {
	s.t.Helper()
	s.halt()
	s.WaitGone(s.pid())
	if !s.deaf {
		s.mustLogAll(s.Lines())
	}
	s.stop(s.end)
}

// beginHalt has the supervisor stop the server; wait waits until it has.
func (s *supervised) beginHalt() (wait func()) {
	halted := make(chan struct{})
	go func() { defer close(halted); s.halt() }()
	return func() {
		s.t.Helper()
		select {
		case <-halted:
		case <-time.After(2 * proctest.Limit):
			s.t.Fatalf("the supervisor has not stopped the server")
		}
	}
}

// startSupervisordAlone starts it with the server and nothing that stays between.
func startSupervisordAlone(t *testing.T, more ...string) *supervised {
	t.Helper()
	addr := freeAddr(t)
	return startSupervisord(t, func(server []string) string {
		server[2] = "tcp=" + addr
		return "[program:hello]\ncommand=" + strings.Join(append(server, more...), " ") + "\nstopwaitsecs=100\nstdout_logfile=/dev/stdout\nstdout_logfile_maxbytes=0\nredirect_stderr=true\n"
	})
}

// startSupervisordFollow starts it with a file of example/supervisors, and the server with
// more arguments.
func startSupervisordFollow(t *testing.T, name string, more ...string) *supervised {
	t.Helper()
	addr := freeAddr(t)
	s := startSupervisord(t, func(server []string) string {
		pidFile := server[4]
		server[2] = "tcp=" + addr
		return example(t, name,
			"/usr/local/bin/grace-follow", follow(t), "/run/hello.pid", pidFile,
			"/usr/local/bin/hello", strings.Join(append(server, more...), " "),
			"/var/log/hello.log", "/dev/stdout")
	})
	s.deaf = strings.Contains(name, "pidproxy")
	return s
}

func TestSupervisordFollow(t *testing.T) {
	for _, name := range []string{"supervisord.conf", "supervisord-pidproxy.conf"} {
		t.Run(name, func(t *testing.T) {
			s := startSupervisordFollow(t, name, "-probation", "10ms")
			s.upgrade20()
			s.crash()
			s.finish()
		})
	}
}

func TestSupervisordStartServer(t *testing.T) {
	needProgram(t, "start_server", "libserver-starter-perl")
	addr := freeAddr(t)
	s := startSupervisord(t, func(server []string) string {
		server[2] = "tcp=" + addr
		return example(t, "supervisord-start_server.conf", "--port=9000", "--port="+addr, "--interval=3", "--interval=0",
			"/run/hello.pid", server[4], "/usr/local/bin/hello", strings.Join(server, " "), "/var/log/hello.log", "/dev/stdout")
	})
	s.upgrade20()
	s.crash()
	s.finish()
}

// startMonit starts monit, and with it the server, with more arguments.
func startMonit(t *testing.T, more ...string) *supervised {
	t.Helper()
	path := needProgram(t, "monit", "monit")
	addr, dir := freeAddr(t), shortDir(t)
	conf := filepath.Join(dir, "monitrc")
	m := startUnder(t, "tcp", func(args []string) proctest.Command {
		args[1] = "tcp=" + addr
		args = append(args, more...)
		port := addr[strings.LastIndexByte(addr, ':')+1:]
		program := example(t, "monit.conf", "/run/hello.pid", args[3], "port 9000", "port "+port, "/foo/bar", "/pid",
			"/usr/local/bin/hello", proctest.Build(t, serverPackage)+" "+strings.Join(args, " "),
			"/var/log/hello.log", "/proc/$(cat "+dir+"/pid)/fd/1")
		writeFile(t, conf, strings.ReplaceAll(`set daemon 1
set pidfile $dir/pid
set statefile $dir/state
set idfile $dir/id
`, "$dir", dir)+program+example(t, "monit-httpd.conf", "/run/monit.sock", dir+"/sock"), 0o600)
		return proctest.Command{Path: path, Args: []string{"-I", "-c", conf}}
	})
	monit := func(args ...string) string {
		out, _ := run(t, path, append([]string{"-c", conf}, args...)...)
		return out
	}
	status := func(pattern string) string {
		if m := regexp.MustCompile(pattern).FindStringSubmatch(monit("status", "hello")); m != nil {
			return m[1]
		}
		return ""
	}
	s := &supervised{mastered: m, end: syscall.SIGTERM, halt: func() { monit("stop", "hello") }}
	s.status = func() string { return status(`(?m)^\s*status\s+(OK)$`) }
	s.sees = func() int {
		pid, _ := strconv.Atoi(status(`(?m)^\s*pid\s+(\d+)$`))
		return pid
	}
	proctest.WaitFor(t, proctest.Limit, "monit to call it running", func() bool { return s.status() != "" })
	return s
}

// Monit starts the server and reads its PID file.
func TestMonit(t *testing.T) {
	s := startMonit(t, "-probation", "10ms")
	s.upgrade20()
	proctest.WaitFor(t, proctest.Limit, "monit to see the pid", func() bool { return s.sees() == s.pid() })
	s.crash()
	s.finish()
}

// A server with an upgrade signal of its own knows nothing of USR2.
func TestUpgradeScriptWithASignal(t *testing.T) {
	s := startServer(t, "-probation", "10ms", "-hup")
	old := s.filePid()
	if out, err := run(t, "../example/supervisors/grace-upgrade", "-s", "HUP", s.pidFile, "30"); err != nil {
		t.Errorf("grace-upgrade: %v; it said %q", err, out)
	}
	if got := s.filePid(); got == old || s.servingPid() != got {
		t.Errorf("the PID file names %d, which was %d before", got, old)
	}
}

// grace-upgrade says by its status how the upgrade went.
func TestUpgradeScript(t *testing.T) {
	s := startServer(t, "-probation", "10ms", "-refuse", filepath.Join(t.TempDir(), "refuse"))
	upgrade := func(want int, seconds string) {
		t.Helper()
		out, err := run(t, "../example/supervisors/grace-upgrade", s.pidFile, seconds)
		got := 0
		if e, ok := err.(*exec.ExitError); ok {
			got = e.ExitCode()
		} else if err != nil {
			t.Fatal(err)
		}
		if got != want {
			t.Errorf("grace-upgrade ended with status %d; want %d; it said %q", got, want, out)
		}
		if want == 1 && !strings.Contains(string(out), "its log says why") {
			t.Errorf("grace-upgrade said %q of an upgrade that has failed", out)
		}
	}
	old := s.filePid()
	upgrade(0, "30")
	if s.filePid() == old {
		t.Errorf("grace-upgrade ended with status 0, and the PID file still names %d", old)
	}
	// It does not take the 10 minutes to see that an upgrade has failed, or was rolled back.
	s.misbehave("exit=3@listen")
	upgrade(1, "600")
	s.WaitLine(`grace: upgrade failed`)
	s.misbehave("exit-after-ready=0s")
	upgrade(1, "600")
	s.WaitLine(`grace: rolled back`)
	s.misbehave("")
	h := s.hold() // the old process has to wait for it
	upgrade(3, "10")
	h.release()
	s.Signal(s.WaitAlone(), syscall.SIGTERM)
	s.WaitAllGone()
	upgrade(2, "1")
	// A stale file: its pid is a stranger's by now.
	if err := os.WriteFile(s.pidFile, []byte(strconv.Itoa(os.Getpid())), 0o644); err != nil {
		t.Fatal(err)
	}
	upgrade(2, "1")
}

// A server that is PID 1 would take its successor with it: it says so, and serves on.
func TestPid1Refuses(t *testing.T) {
	unshare := needProgram(t, "unshare", "util-linux")
	args := []string{"--pid", "--fork", "--mount-proc", "--kill-child"}
	if os.Geteuid() != 0 {
		args = append([]string{"--user", "--map-root-user"}, args...)
	}
	dir, addr := t.TempDir(), freeAddr(t)
	p := proctest.Start(t, proctest.Command{Path: unshare, Args: append(args,
		proctest.Build(t, serverPackage), "-http", "tcp="+addr, "-pidfile", filepath.Join(dir, "app.pid"))})
	t.Cleanup(func() {
		if t.Failed() {
			p.Kill()
		}
	})
	p.WaitLine(`grace: serving" .*pid=1 `)
	s := &server{Process: p, t: t, addr: addr}
	s.client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 2 * proctest.Limit}
	server := proctest.Children(p.Pid())[0].Pid
	p.Signal(server, syscall.SIGUSR2)
	p.WaitLine(`upgrade failed; this process goes on serving.*PID 1.*docs/docker.md`)
	if got := s.mustGet("/gen"); got != "1" {
		t.Errorf("generation %s serves; want 1", got)
	}
	p.Signal(server, syscall.SIGTERM)
	p.WaitAllGone()
}

// grace-follow is PID 1, as in a container: it stays, and leaves no zombies.
func TestFollowAsPid1(t *testing.T) {
	unshare := needProgram(t, "unshare", "util-linux")
	args := []string{"--pid", "--fork", "--mount-proc"}
	if os.Geteuid() != 0 {
		args = append([]string{"--user", "--map-root-user"}, args...)
	}
	dir, addr := t.TempDir(), freeAddr(t)
	pidFile := filepath.Join(dir, "app.pid")
	p := proctest.Start(t, proctest.Command{Path: unshare, Args: append(args, follow(t), pidFile,
		proctest.Build(t, serverPackage), "-http", "tcp="+addr, "-pidfile", pidFile, "-probation", "10ms")})
	t.Cleanup(func() {
		if t.Failed() {
			p.Kill()
		}
	})
	p.WaitLine(`grace: serving`)
	s := &server{Process: p, t: t, addr: addr, pidFile: pidFile}
	s.client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 2 * proctest.Limit}
	l := startLoadOn(t, "tcp", addr, 2, 4)
	for i := range upgrades {
		if r := s.upgrade(); r.Err != "" {
			t.Fatalf("upgrade %d: %+v", i+1, r)
		}
		p.WaitLine(`grace: the old process is gone`)
	}
	l.mustLoseNothing(t)
	if got := s.mustGet("/gen"); got != "21" {
		t.Errorf("generation %s serves; want 21", got)
	}
	// unshare, the shell, flock, and the server with what it runs.
	proctest.WaitFor(t, proctest.Limit, "zombies to be reaped", func() bool {
		for _, s := range p.All() {
			if s.Dead() {
				return false
			}
		}
		return true
	})
	for _, c := range proctest.Children(p.Pid()) { // PID 1 of the namespace
		p.Signal(c.Pid, syscall.SIGTERM)
	}
	p.WaitAllGone()
	if _, err := os.Stat(pidFile); !os.IsNotExist(err) {
		t.Errorf("the PID file is left: %v", err)
	}
}
