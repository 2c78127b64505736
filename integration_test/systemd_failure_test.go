//go:build linux

package integration_test

import (
	"context"
	"fmt"
	"os"
	"testing"

	loadtest "github.com/julofinance/grace/v3/internal/load"
	"github.com/julofinance/grace/v3/internal/proctest"
)

func TestSystemdFailedUpgrade(t *testing.T) {
	for _, c := range []unitConfig{
		{name: "hello"},
		{name: "hello-reload", version: 253},
		{name: "hello-socket"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.args = []string{"-probation", "2s"}
			u := startUnit(t, c)
			pid := u.mainPid(u.unit)
			for how, words := range map[string][]string{
				"exit=3@start":         {"the upgrade failed", "ended before it was ready"},
				"fail":                 {"the upgrade failed", "ReadyCheck", "not today"},
				"exit-after-ready=0ms": {"the upgrade was rolled back", "died after it was ready"},
			} {
				u.misbehave(how)
				u.do("systemctl", "reload", u.unit)
				u.wantStatus(append(words, fmt.Sprintf("generation 1 serves as pid %d", pid))...)
				if got := []int{u.mainPid(u.unit), u.servingPid(), u.filePid()}; got[0] != pid || got[1] != pid || got[2] != pid {
					t.Errorf("after %s: MainPID, serving and PID file are %v, want %d", how, got, pid)
				}
			}
			if err := os.Rename(u.root+"/usr/local/bin/server", u.root+"/usr/local/bin/away"); err != nil {
				t.Fatal(err)
			}
			u.do("systemctl", "reload", u.unit)
			u.wantStatus("the upgrade failed", "could not be started")
			if err := os.Rename(u.root+"/usr/local/bin/away", u.root+"/usr/local/bin/server"); err != nil {
				t.Fatal(err)
			}
			u.wantServing(2, u.reload())
			u.wantRestarts(0)
			u.stopUnit()
		})
	}
}

// A new process that dies while the old one drains is rolled back: systemd must
// not have taken it for the main process yet.
func TestSystemdRollBackInDrain(t *testing.T) {
	for _, c := range []unitConfig{{name: "hello"}, {name: "hello-reload", version: 253}} {
		t.Run(c.name, func(t *testing.T) {
			u := startUnit(t, c)
			pid := u.mainPid(u.unit)
			held := u.hold()
			next := u.startReload()
			if got := u.mainPid(u.unit); got != pid {
				t.Errorf("MainPID is %d while process %d may have to take over again", got, pid)
			}
			u.kill(next, "KILL")
			u.wantStatus("rolled back", fmt.Sprintf("generation 1 serves as pid %d", pid))
			if got := u.servingPid(); got != pid {
				t.Errorf("process %d answers, want %d", got, pid)
			}
			held.release()
			u.wantServing(2, u.reload())
			u.wantRestarts(0)
			u.stopUnit()
		})
	}
}

// With a PIDFile= the service goes on with the new process if the old one is
// killed; without it, it is started again.
func TestSystemdOldIsKilled(t *testing.T) {
	for _, c := range []struct {
		unitConfig
		restarts int
	}{
		{unitConfig{name: "hello"}, 1},
		{unitConfig{name: "hello-reload", version: 253}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			u := startUnit(t, c.unitConfig)
			pid := u.mainPid(u.unit)
			held := u.hold()
			next := u.startReload()
			u.kill(pid, "KILL")
			held.cutOff()
			if c.restarts == 0 {
				u.wait("MainPID to be the new one", func() bool { return u.mainPid(u.unit) == next })
				u.wantServing(2, next)
			} else {
				u.waitShow(u.unit, "NRestarts", "1")
				u.waitShow(u.unit, "SubState", "running")
				u.wantServing(1, u.mainPid(u.unit))
			}
			u.wantRestarts(c.restarts)
			u.wait("the reload to end", func() bool { return u.show(u.unit, "Job") == "0" || u.show(u.unit, "Job") == "" })
			pid = u.reload()
			u.wantServing(3-c.restarts, pid)
			u.stopUnit()
		})
	}
}

func TestSystemdCrash(t *testing.T) {
	u := startUnit(t, unitConfig{name: "hello"})
	u.wantServing(2, u.reload())
	pid := u.mainPid(u.unit)
	u.kill(pid, "KILL")
	u.waitShow(u.unit, "NRestarts", "1")
	u.waitShow(u.unit, "SubState", "running")
	next := u.mainPid(u.unit)
	if next == pid {
		t.Errorf("MainPID is still %d, which was killed", pid)
	}
	u.wantServing(1, next)
	u.stopUnit()
}

// At a stop both processes of an upgrade drain, each for as long as it needs.
func TestSystemdStopInDrain(t *testing.T) {
	u := startUnit(t, unitConfig{name: "hello"})
	old := u.hold()
	next := u.startReload()
	young := u.hold()
	if young.pid != next {
		t.Fatalf("process %d answers, want %d", young.pid, next)
	}
	u.do("systemctl", "stop", "--no-block", u.unit)
	// The one that hears of it first passes it on; the other's own signal then
	// says nothing new, and is not logged.
	u.waitJournal(u.unit, "grace: stopping")
	old.release()
	u.waitJournal(u.unit, fmt.Sprintf(`grace: drained.* from=%d `, old.pid))
	// Did systemd hear of its end now, it would signal the other one again.
	if got := u.show(u.unit, "SubState"); got != "stop-sigterm" {
		t.Errorf("the service is %s while process %d drains", got, next)
	}
	young.release()
	u.waitShow(u.unit, "ActiveState", "inactive")
	if got := u.show(u.unit, "Result"); got != "success" {
		t.Errorf("the service ends with the result %s", got)
	}
}

func TestSystemdWatchdog(t *testing.T) {
	u := startUnit(t, unitConfig{name: "hello-watchdog", service: "WatchdogSec=3s"})
	// lives waits until systemd has heard of the main process for longer than
	// the watchdog's time.
	lives := func() {
		t.Helper()
		stamp := func() int { return atoi(t, u.show(u.unit, "WatchdogTimestampMonotonic")) }
		begin := stamp()
		u.wait("the watchdog to be told", func() bool { return stamp() > begin+4_000_000 })
		u.wantRestarts(0)
	}
	lives()
	pid := u.mainPid(u.unit)
	held := u.hold()
	next := u.startReload()
	lives()
	if got := u.mainPid(u.unit); got != pid {
		t.Errorf("MainPID is %d while %d drains", got, pid)
	}
	held.release()
	u.wait("MainPID to move", func() bool { return u.mainPid(u.unit) == next })
	lives()
	u.wantServing(2, next)
	u.kill(next, "STOP")
	u.waitShow(u.unit, "NRestarts", "1")
	u.waitJournal(u.unit, "Watchdog timeout")
	u.waitShow(u.unit, "SubState", "running")
	u.wantServing(1, u.mainPid(u.unit))
	u.stopUnit()
}

// While a socket-activated service restarts, connections wait in systemd's
// queue; and a socket's file stays, which is systemd's.
func TestSystemdSocketStays(t *testing.T) {
	t.Run("restart", func(t *testing.T) {
		u := startUnit(t, unitConfig{name: "hello-socket", service: "RestartSec=0"})
		run, err := loadtest.Start(context.Background(), loadtest.Config{Addr: u.addr, Limit: proctest.Limit, Kinds: map[loadtest.Kind]int{loadtest.Connect: 4}})
		if err != nil {
			t.Fatal(err)
		}
		defer run.Stop()
		for range 3 {
			pid := u.mainPid(u.unit)
			u.do("systemctl", "restart", u.unit)
			u.wantServing(1, u.mainPid(u.unit))
			if u.mainPid(u.unit) == pid {
				t.Error("nothing was restarted")
			}
		}
		if report := run.Stop(); report.Lost() > 0 {
			t.Errorf("lost:\n%v", report)
		}
	})
	t.Run("path", func(t *testing.T) {
		const path = "/run/web.sock"
		u := startUnit(t, unitConfig{name: "hello-socket", socket: path, listen: "unix=" + path})
		if pid := u.reload(); pid == 0 {
			t.Error("no main process")
		}
		u.stopUnit()
		if out := u.do("stat", "-c", "%F", path); out != "socket" {
			t.Errorf("%s is a %s", path, out)
		}
		u.waitShow("hello-socket.socket", "ActiveState", "active")
	})
}
