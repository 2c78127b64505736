//go:build linux

package integration_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/julofinance/grace/v3/internal/proctest"
)

const socketmasterPackage = "github.com/julofinance/grace/v3/integration_test/socketmaster"

// socketmaster gives the command of a stand-in. The server is started by a
// script, since zimbatm's passes no arguments.
func socketmaster(t *testing.T, listen, run string, args ...string) func([]string) proctest.Command {
	return func(serverArgs []string) proctest.Command {
		cmd := script(t, run, proctest.Build(t, serverPackage)+" "+strings.Join(serverArgs, " "))
		return proctest.Command{
			Path: proctest.Build(t, socketmasterPackage),
			Args: append([]string{"-listen", listen, "-command", cmd}, args...),
		}
	}
}

func TestSocketmaster(t *testing.T) {
	tcp, withExec, without := "tcp://127.0.0.1:0", "exec %s", "%s\nexit $?"
	for name, c := range map[string]struct {
		listen, run string
		args        []string
	}{
		"zimbatm":              {tcp, withExec, []string{"-start", "200"}},
		"zimbatm unix":         {"unix", withExec, []string{"-start", "200"}},
		"zimbatm without exec": {tcp, without, []string{"-start", "200"}},
		"tokopedia":            {tcp, withExec, []string{"-tokopedia", "-start", "200"}},
		"tokopedia notified":   {tcp, withExec, []string{"-tokopedia", "-start", "20", "-wait-child-notif"}},
		"notified unix":        {"unix", withExec, []string{"-tokopedia", "-start", "20", "-wait-child-notif"}},
		"notified without":     {tcp, without, []string{"-tokopedia", "-start", "20", "-wait-child-notif"}},
	} {
		t.Run(name, func(t *testing.T) {
			network := "tcp"
			if c.listen == "unix" {
				network = "unix"
				c.listen = "unix://" + filepath.Join(shortDir(t), "s")
			}
			m := startUnder(t, network, socketmaster(t, c.listen, c.run, c.args...))
			m.waitNotified(c.args)
			m.underLoad(func() {
				for range upgrades {
					m.upgrade()
				}
			})
			if n := m.Count(`upgrade asked of the master, by SIGHUP.* masterpid=` + strconv.Itoa(m.Pid()) + `\b`); n != upgrades {
				t.Errorf("the log has %d lines that name the master; want %d", n, upgrades)
			}
			m.stop(syscall.SIGTERM)
			if c.run == withExec { // else the script's end closes the pipe
				m.mustLogAll(m.Lines())
			}
		})
	}
}

// waitNotified waits until the master hears signals again: at the first start,
// too, it sleeps when it is notified.
func (m *mastered) waitNotified(args []string) {
	m.t.Helper()
	if strings.Contains(strings.Join(args, " "), "wait-child-notif") {
		m.WaitLine("Failed to kill old process")
	}
}

// shortDir is a directory whose path leaves room for a socket's name.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "g")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// SIGTERM comes again with each further upgrade while an old process drains:
// its requests are finished all the same.
func TestSocketmasterKeepsLongRequests(t *testing.T) {
	m := startUnder(t, "tcp", socketmaster(t, "tcp://127.0.0.1:0", "exec %s", "-start", "50"))
	h := m.hold()
	first := m.pid()
	for range 3 {
		m.Signal(m.filePid(), syscall.SIGUSR2)
		m.waitNewest()
		// Before that, the master would lose the next signal.
		m.WaitLine(fmt.Sprintf(`from=%d signal=terminated`, m.pids[len(m.pids)-2]))
	}
	proctest.WaitFor(t, proctest.Limit, "only the busy and the newest process", func() bool { return len(m.Living()) == 3 })
	if !m.Has(first) {
		t.Fatalf("process %d ended with a request that was not answered", first)
	}
	h.release()
	m.WaitGone(first)
	m.stop(syscall.SIGINT)
}

// Each start of a child makes the socket blocking for all that have it. An Accept that
// began before the new server has listened still ends at the drain, though no client
// connects any more.
func TestSocketmasterMakesSocketBlocking(t *testing.T) {
	args := []string{"-tokopedia", "-start", "1", "-wait-child-notif"}
	m := startUnder(t, "tcp", socketmaster(t, "tcp://127.0.0.1:0", "TEST_SUCCESSOR=1 exec %s", args...))
	m.waitNotified(args)
	m.misbehave("pause@start")
	m.Signal(m.pid(), syscall.SIGUSR2)
	pid := atoi(t, m.WaitLine(`paused at start pid=(\d+)`)[1])
	for range 3 {
		m.servingPid()
	}
	m.Signal(pid, syscall.SIGUSR1)
	m.waitNext()
	m.stop(syscall.SIGTERM)
}

// A program that calls Upgrade is told how it went.
func TestSocketmasterUpgradeCall(t *testing.T) {
	m := startUnder(t, "tcp", socketmaster(t, "tcp://127.0.0.1:0", "exec %s", "-start", "50"))
	got, err := m.get("/upgrade")
	if r := parseResult(t, got); err != nil || r.Err != "" {
		t.Errorf("Upgrade gave %+v, error %v; want none", r, err)
	}
	m.waitNext()
	m.stop(syscall.SIGTERM)
}

// Socketmaster does not start a child that died again, and ends with the last.
func TestSocketmasterCrash(t *testing.T) {
	m := startUnder(t, "tcp", socketmaster(t, "tcp://127.0.0.1:0", "exec %s", "-start", "50"))
	m.Signal(m.pid(), syscall.SIGKILL)
	m.WaitAllGone()
}

// A new version that dies leaves the old one serving, and the PID file with it.
func TestSocketmasterBrokenVersion(t *testing.T) {
	m := startUnder(t, "tcp", socketmaster(t, "tcp://127.0.0.1:0", "TEST_SUCCESSOR=1 exec %s", "-start", "2000"))
	m.misbehave("exit=3@listen")
	m.underLoad(func() {
		m.Signal(m.pid(), syscall.SIGUSR2)
		m.WaitLine(`exit status 3`)
		m.WaitLine(`Failed to kill old process`)
	})
	if got := m.filePid(); got != m.pid() {
		t.Errorf("the PID file names %d; want %d", got, m.pid())
	}
	m.stop(syscall.SIGTERM)
}

// A new version that dies after it was ready, before the old one was told to
// drain: the PID file names the old one again.
func TestSocketmasterNewestDies(t *testing.T) {
	m := startUnder(t, "tcp", socketmaster(t, "tcp://127.0.0.1:0", "TEST_SUCCESSOR=1 exec %s", "-start", "2000"))
	old := m.pid()
	m.misbehave("exit-after-ready=300ms")
	m.Signal(old, syscall.SIGUSR2)
	m.waitNewest()
	m.WaitLine(`exit status 7`)
	proctest.WaitFor(t, proctest.Limit, "the old pid in the PID file", func() bool { return m.filePid() == old })
	m.WaitLine(`Failed to kill old process`)
	m.pids = append(m.pids, old)
	m.upgrade()
	m.WaitLine(fmt.Sprintf(`from=%d signal=terminated`, old))
	m.stop(syscall.SIGTERM)
}

// The master is killed: its child serves on, can write to a log that no process reads,
// and signals no process that now has the master's place.
func TestSocketmasterKilled(t *testing.T) {
	m := startUnder(t, "tcp", socketmaster(t, "tcp://127.0.0.1:0", "exec %s", "-start", "50"))
	m.Signal(m.Pid(), syscall.SIGKILL)
	m.WaitExit(m.Pid())
	got, err := m.get("/upgrade")
	if r := parseResult(t, got); err != nil || !strings.Contains(r.Err, "is gone") {
		t.Errorf("Upgrade gave %+v, error %v; want one that says that the master is gone", r, err)
	}
	if got := m.servingPid(); got != m.pid() {
		t.Errorf("process %d serves; want %d", got, m.pid())
	}
	m.Signal(m.pid(), syscall.SIGTERM)
	m.WaitAllGone()
}

// SIGUSR1 makes zimbatm's socketmaster execute itself: it forgets its children.
// The one of before serves on, and the new one is upgraded as ever.
func TestSocketmasterRestartsItself(t *testing.T) {
	m := startUnder(t, "tcp", socketmaster(t, "tcp://127.0.0.1:0", "exec %s", "-start", "50"))
	forgotten := m.pid()
	m.underLoad(func() {
		m.Signal(m.Pid(), syscall.SIGUSR1)
		m.waitNewest()
		m.upgrade()
	})
	if !m.Has(forgotten) {
		t.Errorf("process %d ended, though it was not told to", forgotten)
	}
	m.Signal(forgotten, syscall.SIGTERM)
	m.stop(syscall.SIGTERM)
}

// What socketmaster has told the server is not passed on to what that starts:
// neither the variables nor the socket.
func TestMasterVariables(t *testing.T) {
	m := startUnder(t, "tcp", socketmaster(t, "tcp://127.0.0.1:0", "exec %s", "-tokopedia", "-start", "1", "-wait-child-notif"))
	m.waitNotified([]string{"-wait-child-notif"})
	for _, path := range []string{"/env", "/run?arg=env"} {
		got, err := m.get(path)
		if err != nil || !strings.Contains(got, "PATH=") {
			t.Fatalf("%s gave %q, error %v", path, got, err)
		}
		if strings.Contains(got, "EINHORN") || strings.Contains(got, "SOCKETMASTER_PID") {
			t.Errorf("%s has variables of the master:\n%s", path, got)
		}
	}
	fds, err := m.get("/run?arg=ls&arg=-l&arg=/proc/self/fd")
	if err != nil || !strings.Contains(fds, "0 -> ") {
		t.Fatalf("ls gave %q, error %v", fds, err)
	}
	if strings.Contains(fds, "socket:") {
		t.Errorf("a program that the server has started has a socket:\n%s", fds)
	}
	m.stop(syscall.SIGTERM)
}
