//go:build linux

package integration_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/proctest"
)

// signalGroup sends a signal to the whole process group, as a terminal does.
func (s *server) signalGroup(sig syscall.Signal) {
	s.t.Helper()
	if err := syscall.Kill(-s.Pid(), sig); err != nil {
		s.t.Fatalf("signal %v to the process group %d: %v", sig, s.Pid(), err)
	}
}

// A moment is one of a hand-over that a signal may come in.
type moment struct {
	name, line string
	args       []string
	new        bool // the new process serves
}

var moments = []moment{
	{name: "serving"},
	{name: "starting", line: `^paused at`},
	{name: "probation", line: `standing by"`, args: []string{"-probation", "2s"}, new: true},
	{name: "drain", line: `upgrade done; draining"`, args: []string{"-probation", "0"}, new: true},
}

// comeTo upgrades up to that moment. The old process has a request that does not end by
// itself.
func (s *server) comeTo(m moment) *held {
	s.t.Helper()
	h := s.hold()
	if m.line == "" {
		return h
	}
	if !m.new {
		s.misbehave("pause@check")
	}
	s.Signal(s.Pid(), syscall.SIGUSR2)
	s.WaitLine(m.line)
	return h
}

// mustCutNothing: no process logs that a connection was cut off, or worse.
func (s *server) mustCutNothing() {
	s.t.Helper()
	if n := s.Count(`level=(ERROR|WARN)`); n > 0 {
		s.t.Errorf("%d errors or warnings were logged, want none", n)
	}
}

// TERM to the process group of a server ends it in order, whatever goes on.
func TestGroupTerm(t *testing.T) {
	for _, m := range moments {
		t.Run(m.name, func(t *testing.T) {
			s := startServer(t, append(m.args, "-drain", "10m")...)
			h := s.comeTo(m)
			var h2 *held
			if m.new {
				s.successor(s.Pid())
				h2 = s.hold()
			}
			s.signalGroup(syscall.SIGTERM)
			s.WaitLine(`msg="grace: stopping".* now=false`)
			s.waitRefused()
			if h2 != nil {
				h2.release()
			}
			h.release()
			s.mustStopAll(s.Pid())
			s.mustCutNothing()
		})
	}
}

// USR2 to the process group is one upgrade: one more than the one under way.
func TestGroupUpgrade(t *testing.T) {
	for _, m := range moments {
		t.Run(m.name, func(t *testing.T) {
			s := startServer(t, append(m.args, "-drain", "10m")...)
			old, want := s.Pid(), 3
			h := s.comeTo(m)
			if m.line == "" {
				want = 2
			} else if m.new {
				s.successor(old)
			}
			if m.line == "" {
				s.signalGroup(syscall.SIGUSR2)
			} else {
				// Until it is another signal than the one that has brought us here.
				proctest.WaitFor(t, proctest.Limit, "a signal to count", func() bool {
					s.signalGroup(syscall.SIGUSR2)
					return s.Count(`(upgrade queued|passed on)" from=`+fmt.Sprint(old)) > 0
				})
			}
			if m.name == "starting" {
				for _, pid := range s.Living() {
					if pid != old {
						s.Signal(pid, syscall.SIGUSR1)
					}
				}
			}
			h.release()
			s.WaitGone(old)
			s.WaitLine(fmt.Sprintf(`msg="grace: serving" .*generation=%d`, want))
			pid := s.WaitAlone()
			if got := s.mustGet("/gen"); got != fmt.Sprint(want) || s.filePid() != pid {
				t.Errorf("generation %s is left as pid %d, and the PID file names %d; want generation %d", got, pid, s.filePid(), want)
			}
		})
	}
}

// startGroup starts the server behind grace-follow, behind an init that signals
// the whole process group, as process 1 of a container of its own.
func startGroup(t *testing.T, init []string, args ...string) (s *server, pid1 int) {
	t.Helper()
	unshare := needProgram(t, "unshare", "util-linux")
	command := []string{"--pid", "--fork", "--mount-proc", "--kill-child"}
	if os.Geteuid() != 0 {
		command = append([]string{"--user", "--map-root-user"}, command...)
	}
	dir, addr := t.TempDir(), freeAddr(t)
	s = &server{t: t, addr: addr, pidFile: filepath.Join(dir, "app.pid"), misFile: filepath.Join(dir, "misbehave")}
	command = append(append(command, init...), follow(t), s.pidFile, proctest.Build(t, serverPackage), "-http", "tcp="+addr, "-pidfile", s.pidFile, "-misbehave", s.misFile)
	s.Process = proctest.Start(t, proctest.Command{Path: unshare, Args: append(command, args...)})
	t.Cleanup(func() {
		if t.Failed() {
			s.Kill()
		}
	})
	s.WaitLine(`grace: serving`)
	s.client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 2 * proctest.Limit}
	pid1 = proctest.Children(s.Pid())[0].Pid
	// The init makes a process group, or a session.
	for _, c := range proctest.Children(pid1) {
		s.Adopt(c.Group)
	}
	return s, pid1
}

// child gives the process that a server has started, whose pid the log does not
// know in a namespace of its own.
func (s *server) child() int {
	s.t.Helper()
	servers := map[int]bool{}
	for _, p := range s.All() {
		servers[p.Pid] = strings.HasPrefix(filepath.Base(proctest.Build(s.t, serverPackage)), p.Name)
	}
	for _, p := range s.All() {
		if servers[p.Pid] && servers[p.Parent] {
			return p.Pid
		}
	}
	s.t.Fatalf("none of %+v is the child of another server", s.All())
	return 0
}

func logTime(t *testing.T, text string) time.Time {
	t.Helper()
	at, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// An init that passes each signal on to the whole group is one that grace-follow passes
// it on from, too: the old and the new process get each one twice.
func TestGroupOfInit(t *testing.T) {
	for name, init := range map[string][]string{
		"tini":      {needProgram(t, "tini", "tini"), "-g", "--"},
		"dumb-init": {needProgram(t, "dumb-init", "dumb-init"), "--"},
	} {
		t.Run(name, func(t *testing.T) {
			s, pid1 := startGroup(t, init, "-probation", "0", "-drain", "10m")
			h := s.hold()
			s.misbehave("pause@check") // until the second one has come, too
			s.Signal(pid1, syscall.SIGUSR2)
			begins := s.WaitLine(`time=(\S+) .*upgrade begins"`)
			again := s.WaitLine(`time=(\S+) .*(it counts as one|upgrade queued)"`)
			if took := logTime(t, again[1]).Sub(logTime(t, begins[1])); again[2] != "it counts as one" && took < 400*time.Millisecond {
				t.Errorf("one signal, which came again after %v, has asked for two upgrades", took)
			}
			s.WaitLine(`^paused at check`)
			s.Signal(s.child(), syscall.SIGUSR1)
			s.WaitLine(`upgrade done; draining"`)
			h2 := s.hold()
			s.Signal(pid1, syscall.SIGTERM)
			s.WaitLine(`msg="grace: stopping".* now=false`)
			s.waitRefused()
			h2.release()
			h.release()
			s.WaitAllGone()
			s.mustCutNothing()
		})
	}
}

// supervisord signals the whole group where it is told to.
func TestGroupOfSupervisord(t *testing.T) {
	addr := freeAddr(t)
	s := startSupervisord(t, func(server []string) string {
		pidFile := server[4]
		server[2] = "tcp=" + addr
		server = append(server, "-probation", "0", "-drain", "10m")
		return example(t, "supervisord.conf",
			"/usr/local/bin/grace-follow", follow(t), "/run/hello.pid", pidFile,
			"/usr/local/bin/hello", strings.Join(server, " "),
			"/var/log/hello.log", "/dev/stdout") + "stopasgroup=true\n"
	})
	old := s.pid()
	h := s.hold()
	s.Signal(old, syscall.SIGUSR2)
	s.WaitLine(`upgrade done; draining"`)
	s.waitNewest()
	h2 := s.hold()
	halted := s.beginHalt()
	s.WaitLine(`msg="grace: stopping".* now=false`)
	s.waitRefused()
	h2.release()
	h.release()
	halted()
	s.WaitGone(s.pid())
	s.mustCutNothing()
	s.stop(syscall.SIGTERM)
}

// passOnFor is how long the old process passes a stop signal on after the hand-over.
const passOnFor = 10 * time.Second

// waitLong waits until a hand-over that ended before now is long ago.
func waitLong(t *testing.T) {
	t.Helper()
	begin := time.Now()
	proctest.WaitFor(t, proctest.Limit+passOnFor, "the hand-over to be long ago", func() bool { return time.Since(begin) > passOnFor+time.Second })
}

// TERM to the pid of an old process that takes too long to end is not one to the
// service.
func TestTermLongAfterHandOver(t *testing.T) {
	s := startServer(t, "-probation", "0", "-drain", "10m")
	old := s.Pid()
	h := s.hold()
	s.Signal(old, syscall.SIGUSR2)
	s.WaitLine(`upgrade done; draining"`)
	new := s.successor(old)
	waitLong(t)
	s.Signal(old, syscall.SIGTERM)
	s.WaitLine(fmt.Sprintf(`handed over long ago; only this process ends" from=%d new=%d signal=terminated now=false`, old, new))
	s.signalAnew(old, syscall.SIGTERM, `handed over long ago; only this process ends" .* now=true`)
	h.cutOff()
	if ws := s.WaitExit(old); ws != 0 {
		t.Errorf("the old process has ended with %v, want exit status 0", ws)
	}
	if got := s.servingPid(); got != new || s.filePid() != new {
		t.Errorf("process %d serves, and the PID file names %d; want %d", got, s.filePid(), new)
	}
	s.mustUpgrade()
}

// supervisord knows only the pid that it has started: a stop that it sends is
// one of the service, however long ago that process has handed over.
func TestSupervisordStopsByTheFirstPid(t *testing.T) {
	s := startSupervisordAlone(t, "-probation", "0", "-drain", "10m")
	old := s.pid()
	h := s.hold()
	s.Signal(old, syscall.SIGUSR2)
	s.WaitLine(`upgrade done; draining"`)
	s.waitNewest()
	h2 := s.hold()
	waitLong(t)
	halted := s.beginHalt()
	s.WaitLine(fmt.Sprintf(`passed on" from=%d new=%d`, old, s.pid()))
	s.waitRefused()
	h2.release()
	s.WaitGone(s.pid())
	h.release()
	s.WaitGone(old)
	s.mustCutNothing()
	halted()
	s.stop(syscall.SIGTERM)
}
