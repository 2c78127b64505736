//go:build linux

package integration_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/julofinance/grace/v3/internal/proctest"
)

// The scripts grace-upgrade and grace-follow, and the supervisors that a run
// script is enough for.

// A stranger is a process that says so when it is signalled.
func startStranger(t *testing.T) *proctest.Process {
	t.Helper()
	p := proctest.Start(t, proctest.Command{Path: "/bin/sh", Args: []string{"-c",
		`trap "echo signalled" TERM USR2; echo there; while read -r line || kill -0 $PPID; do :; done`}})
	p.WaitLine("^there$")
	t.Cleanup(p.Kill)
	return p
}

// mustNotBeSignalled is called when the process that should have had the signal has had
// it.
func mustNotBeSignalled(t *testing.T, p *proctest.Process) {
	t.Helper()
	if p.Count("^signalled$") > 0 {
		t.Errorf("a stranger was signalled")
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Pid()))
	if err != nil {
		t.Fatal(err)
	}
	if m := regexp.MustCompile(`(?m)^S[hi][dg]Pnd:.*[1-9a-f]`).Find(b); m != nil {
		t.Errorf("a stranger has a signal to come: %s", m)
	}
}

// mustExit runs grace-upgrade, which must end with this status.
func mustExit(t *testing.T, want int, env []string, pidFile, seconds string) {
	t.Helper()
	c := exec.Command("../example/supervisors/grace-upgrade", pidFile, seconds)
	c.Env = append(os.Environ(), env...)
	out, err := c.CombinedOutput()
	if got := c.ProcessState.ExitCode(); got != want {
		t.Errorf("grace-upgrade ended with status %d, want %d; it said %q (%v)", got, want, out, err)
	}
}

// The number in the file is a stranger's, though a server holds the lock.
func TestUpgradeScriptSignalsNoStranger(t *testing.T) {
	s, stranger := startServer(t), startStranger(t)
	if err := os.WriteFile(s.pidFile, fmt.Appendln(nil, stranger.Pid()), 0o644); err != nil {
		t.Fatal(err)
	}
	mustExit(t, 2, nil, s.pidFile, "1")
	mustNotBeSignalled(t, stranger)
	if n := s.Count("upgrade begins"); n != 0 {
		t.Errorf("%d upgrades have begun, want 0", n)
	}
}

// An old process that has ended and was not waited for (a zombie) is dead.
func TestUpgradeScriptSeesZombies(t *testing.T) {
	dir := t.TempDir()
	s := &server{t: t, pidFile: filepath.Join(dir, "app.pid")}
	s.Process = proctest.Start(t, proctest.Command{Path: "/bin/sh", Args: []string{"-c", `"$@" & exec sleep 1000`, "sh",
		proctest.Build(t, serverPackage), "-http", "tcp=127.0.0.1:0", "-pidfile", s.pidFile, "-probation", "1ms"}})
	t.Cleanup(s.Kill)
	s.WaitLine("grace: serving")
	old := s.filePid()
	mustExit(t, 0, nil, s.pidFile, "60")
	if st, ok := proctest.ReadStat(old); !ok || !st.Dead() {
		t.Errorf("process %d is no zombie: it shows nothing", old)
	}
}

// The time of day is set forward in the middle.
func TestUpgradeScriptAndTheTimeOfDay(t *testing.T) {
	bin := t.TempDir()
	writeFile(t, filepath.Join(bin, "date"), "#!/bin/sh\nif [ -e \"$0.called\" ]; then echo 9999999999; else : >\"$0.called\"; echo 0; fi\n", 0o755)
	s := startServer(t, "-probation", "1ms")
	mustExit(t, 0, []string{"PATH=" + bin + ":" + os.Getenv("PATH")}, s.pidFile, "60")
}

// An upgrade that waits for the process before this one to end is not one that failed.
func TestUpgradeScriptWhileAnUpgradeWaits(t *testing.T) {
	s := startServer(t, "-probation", "1ms")
	h := s.hold()
	s.Signal(h.pid, syscall.SIGUSR2)
	s.WaitLine("upgrade done; draining")
	mustExit(t, 5, nil, s.pidFile, "1")
	s.WaitLine("upgrade queued")
	second := s.filePid()
	h.release()
	s.WaitGone(second)
	s.WaitAlone()

	// One under way: the new process is not ready.
	s.misbehave("pause@listen")
	mustExit(t, 5, nil, s.pidFile, "1")
	old := s.filePid()
	s.Signal(atoi(t, s.WaitLine(`paused at listen pid=(\d+)`)[1]), syscall.SIGUSR1)
	s.WaitGone(old)
}

// An upgrade of which nothing is seen yet has not failed.
func TestUpgradeScriptBeforeTheNewProcess(t *testing.T) {
	s := startServer(t, "-probation", "1ms")
	s.Halt(s.Pid()) // it heeds no signal while the script looks
	mustExit(t, 5, nil, s.pidFile, "1")
	old := s.filePid()
	s.Signal(old, syscall.SIGCONT)
	s.WaitGone(old)
}

// grace-follow has a stale file before it, and a server that takes its time.
func TestFollowSignalsNoStranger(t *testing.T) {
	start := func(t *testing.T, dir string, server ...string) (*proctest.Process, *proctest.Process) {
		stranger := startStranger(t)
		pidFile := writeFile(t, filepath.Join(dir, "app.pid"), fmt.Sprintln(stranger.Pid()), 0o644)
		return proctest.Start(t, proctest.Command{Path: follow(t), Args: append([]string{pidFile}, server...)}), stranger
	}
	t.Run("no process holds the lock", func(t *testing.T) {
		p, stranger := start(t, t.TempDir(), "/bin/sh", "-c", `trap "echo ended in order; exit 0" TERM; echo up; while :; do sleep 0.1; done`)
		p.WaitLine("^up$")
		p.Signal(p.Pid(), syscall.SIGTERM)
		p.WaitLine("ended in order")
		p.WaitAllGone()
		mustNotBeSignalled(t, stranger)
	})
	t.Run("the server has the lock, and not the file yet", func(t *testing.T) {
		needProgram(t, "strace", "strace")
		dir := t.TempDir()
		c := underStrace(t, []string{"-I", "1", "-o", filepath.Join(t.TempDir(), "trace"), "-e", "inject=/^rename:delay_enter=600000000"}, proctest.Build(t, serverPackage),
			"-http", "tcp=127.0.0.1:0", "-pidfile", filepath.Join(dir, "app.pid"))
		p, stranger := start(t, dir, append([]string{c.Path}, c.Args...)...)
		proctest.WaitFor(t, proctest.Limit, "the lock", func() bool {
			found, _ := filepath.Glob(filepath.Join(dir, ".app.pid.[0-9]*")) // all but the rename
			return len(found) > 0
		})
		p.Signal(p.Pid(), syscall.SIGTERM) // strace ends for it
		proctest.WaitFor(t, proctest.Limit, "strace's end", func() bool {
			for _, s := range p.All() {
				if s.Name == "strace" && !s.Dead() {
					return false
				}
			}
			return true
		})
		mustNotBeSignalled(t, stranger)
		p.Kill()
	})
}

// grace-follow's status is 0 after a stop in order: also if the signal comes in
// the moment in which the server ends, and if the server that it has started was
// refused, since the service ran already.
func TestFollowStatusAfterAStop(t *testing.T) {
	t.Run("the signal comes as the server ends", func(t *testing.T) {
		dir := t.TempDir()
		fifo := filepath.Join(dir, "end")
		if err := syscall.Mkfifo(fifo, 0o600); err != nil {
			t.Fatal(err)
		}
		p := proctest.Start(t, proctest.Command{Path: follow(t), Args: []string{filepath.Join(dir, "app.pid"),
			"/bin/sh", "-c", `trap "" TERM; echo up $$; read -r line <` + fifo}})
		defer p.Kill()
		server := atoi(t, p.WaitLine(`^up (\d+)$`)[1])
		is := func(pid int, what func(proctest.Stat) bool) func() bool {
			return func() bool { s, ok := proctest.ReadStat(pid); return ok && what(s) }
		}
		p.Halt(p.Pid())
		p.Signal(p.Pid(), syscall.SIGTERM)
		if err := os.WriteFile(fifo, []byte("end\n"), 0); err != nil {
			t.Fatal(err)
		}
		proctest.WaitFor(t, proctest.Limit, "the server's end", is(server, proctest.Stat.Dead))
		p.Signal(p.Pid(), syscall.SIGCONT)
		if ws := p.WaitExit(p.Pid()); ws != 0 {
			t.Errorf("grace-follow ended with status %d, want 0", ws.ExitStatus())
		}
	})
	t.Run("the service ran already", func(t *testing.T) {
		s := startServer(t)
		p := proctest.Start(t, proctest.Command{Path: follow(t), Args: []string{s.pidFile,
			proctest.Build(t, serverPackage), "-http", "tcp=127.0.0.1:0", "-pidfile", s.pidFile}})
		p.WaitLine("already running")
		proctest.WaitFor(t, proctest.Limit, "grace-follow to wait for the lock", func() bool {
			return slices.ContainsFunc(p.All(), func(s proctest.Stat) bool { return s.Name == "flock" })
		})
		p.Signal(p.Pid(), syscall.SIGTERM)
		s.WaitAllGone()
		if ws := p.WaitExit(p.Pid()); ws != 0 {
			t.Errorf("grace-follow ended with status %d, want 0: the service was stopped in order", ws.ExitStatus())
		}
	})
}

// A runner is a supervisor that a run script is enough for.
type runner struct {
	program, debian string
	status          func(t *testing.T, dir string) string // what stays the same while it serves; "" if it is down
	stop            func(t *testing.T, dir string)        // returns when the service is down, or is about to be
	end             syscall.Signal                        // see supervised
}

var runners = map[string]runner{
	"runit": {
		"runsv", "runit",
		func(t *testing.T, dir string) string {
			out, _ := run(t, "sv", "status", dir)
			return regexp.MustCompile(`^run: .*: \(pid \d+\)`).FindString(out)
		},
		func(t *testing.T, dir string) {
			if out, _ := run(t, "sv", "-w", "30", "stop", dir); !strings.HasPrefix(out, "ok: down:") {
				t.Errorf("sv stop said %q", out)
			}
		},
		syscall.SIGTERM,
	},
	"s6": {
		"s6-supervise", "s6",
		func(t *testing.T, dir string) string {
			out, _ := run(t, "s6-svstat", "-o", "up,pid", dir)
			return regexp.MustCompile(`^true \d+$`).FindString(out)
		},
		func(t *testing.T, dir string) {
			if out, err := run(t, "s6-svc", "-wD", "-T", "30000", "-d", dir); err != nil {
				t.Errorf("s6-svc -d: %v, %s", err, out)
			}
		},
		syscall.SIGTERM,
	},
	"daemontools": {
		"supervise", "daemontools",
		func(t *testing.T, dir string) string {
			out, _ := run(t, "svstat", dir)
			return regexp.MustCompile(`: up \(pid \d+\)`).FindString(out)
		},
		func(t *testing.T, dir string) {
			if out, err := run(t, "svc", "-dx", dir); err != nil {
				t.Errorf("svc -dx: %v, %s", err, out)
			}
		},
		0,
	},
}

func TestRunScripts(t *testing.T) {
	for name, r := range runners {
		for _, file := range []string{"run", "run-follow"} {
			t.Run(name+"/"+file, func(t *testing.T) { testRunScript(t, r, file) })
		}
	}
}

func testRunScript(t *testing.T, r runner, file string) {
	s := startRunScript(t, r, file, "-probation", "10ms")
	s.upgrade20()
	s.crash()
	s.finish()
}

// startRunScript starts the supervisor with this script, and the server with more arguments.
func startRunScript(t *testing.T, r runner, file string, more ...string) *supervised {
	t.Helper()
	path := needProgram(t, r.program, r.debian)
	addr, dir := freeAddr(t), shortDir(t)
	m := startUnder(t, "tcp", func(args []string) proctest.Command {
		args[1] = "tcp=" + addr
		args = append(args, more...)
		replace := []string{"/run/hello.pid", args[3], "/usr/local/bin/hello", proctest.Build(t, serverPackage) + " " + strings.Join(args, " ")}
		if file == "run" {
			needProgram(t, "start_server", "libserver-starter-perl")
			replace = append(replace, "--port=9000", "--port="+addr, "--interval=3", "--interval=0")
		} else {
			replace = append(replace, "/usr/local/bin/grace-follow", follow(t))
		}
		writeFile(t, filepath.Join(dir, "run"), example(t, "runit/"+file, replace...), 0o755)
		return proctest.Command{Path: path, Args: []string{dir}}
	})
	s := &supervised{mastered: m, end: r.end, halt: func() { r.stop(t, dir) }, status: func() string { return r.status(t, dir) }}
	proctest.WaitFor(t, proctest.Limit, "the supervisor to call it up", func() bool { return s.status() != "" })
	return s
}
