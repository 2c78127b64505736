//go:build linux

package integration_test

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"

	loadtest "github.com/julofinance/grace/v3/internal/load"
	"github.com/julofinance/grace/v3/internal/proctest"
)

// A systemdUnit is one of the unit files of example/systemd, with the test
// server in place of its own, running under a systemd of its own.
type systemdUnit struct {
	*systemd
	server
	unit string // with .service
	dir  string // its RuntimeDirectory
}

// A unitConfig says which unit, and what is changed about it.
type unitConfig struct {
	name    string
	version int      // of systemd at least; default 250
	listen  string   // the server's -http; default: the address by itself
	args    []string // more for the server
	service string   // lines for [Service]
	socket  string   // instead of the address, for [Socket]
}

// startUnit boots a systemd and starts the unit.
func startUnit(t *testing.T, c unitConfig) *systemdUnit {
	t.Helper()
	program := proctest.Build(t, serverPackage)
	host := loopback(t)
	s := bootSystemd(t, max(c.version, 250))
	s.install(program, "/usr/local/bin/server")
	u := &systemdUnit{systemd: s, unit: c.name + ".service", dir: "/run/" + c.name}
	u.server = server{
		t: t, addr: host + ":9000",
		pidFile: s.root + u.dir + "/hello.pid", misFile: s.root + u.dir + "/misbehave",
		client: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 2 * proctest.Limit},
	}
	flags := append([]string{
		"/usr/local/bin/server", "-http", cmp.Or(c.listen, "tcp="+u.addr),
		"-pidfile", u.dir + "/hello.pid", "-misbehave", u.dir + "/misbehave", "-probation", "50ms",
	}, c.args...)
	u.unitFile(u.unit, "[Service]\nExecStart=\nExecStart="+strings.Join(flags, " ")+"\n"+c.service+"\n")
	if _, err := os.Stat("../example/systemd/" + c.name + ".socket"); err == nil {
		u.unitFile(c.name+".socket", "[Socket]\nListenStream=\nListenStream="+cmp.Or(c.socket, u.addr)+"\n")
	}
	u.do("systemctl", "daemon-reload")
	u.do("systemctl", "start", u.unit)
	return u
}

// startReload begins an upgrade and waits until the old process drains, and
// gives the new one's pid.
func (u *systemdUnit) startReload() (pid int) {
	u.server.t.Helper()
	u.do("systemctl", "reload", "--no-block", u.unit)
	return atoi(u.server.t, u.waitJournal(u.unit, `upgrade done; draining.* new=(\d+)`)[1])
}

func (u *systemdUnit) kill(pid int, signal string) {
	u.server.t.Helper()
	u.do("kill", "-"+signal, strconv.Itoa(pid))
}

// reload upgrades as an operator does, waits until systemd has another main
// process, and gives its pid.
func (u *systemdUnit) reload() int {
	t := u.server.t
	t.Helper()
	old := u.mainPid(u.unit)
	u.do("systemctl", "reload", u.unit)
	pid := u.mainPid(u.unit)
	if u.show(u.unit, "Type") == "notify-reload" {
		if pid == old {
			t.Fatalf("systemctl reload has returned, and MainPID is still %d; status %q", old, u.show(u.unit, "StatusText"))
		}
	} else {
		u.wait("MainPID to change", func() bool { pid = u.mainPid(u.unit); return pid != old })
	}
	return pid
}

// wantServing checks that systemd, the PID file and the answers name the same process.
func (u *systemdUnit) wantServing(generation, pid int) {
	t := u.server.t
	t.Helper()
	if got := u.mainPid(u.unit); got != pid {
		t.Errorf("MainPID is %d, want %d", got, pid)
	}
	if got := u.servingPid(); got != pid {
		t.Errorf("process %d answers, want %d", got, pid)
	}
	if got := u.filePid(); got != pid {
		t.Errorf("the PID file names %d, want %d", got, pid)
	}
	u.waitShow(u.unit, "StatusText", fmt.Sprintf("generation %d serves as pid %d", generation, pid))
	u.waitShow(u.unit, "ActiveState", "active")
}

// wantStatus waits for a status with these words, of a service that is active.
func (u *systemdUnit) wantStatus(words ...string) {
	t := u.server.t
	t.Helper()
	got := ""
	defer func() {
		if t.Failed() {
			t.Logf("the status says %q", got)
		}
	}()
	u.wait("the status to say "+strings.Join(words, ", "), func() bool {
		got = u.show(u.unit, "StatusText")
		for _, w := range words {
			if !strings.Contains(got, w) {
				return false
			}
		}
		return true
	})
	u.waitShow(u.unit, "ActiveState", "active")
	if out, _ := u.try("systemctl", "status", u.unit); !strings.Contains(out, got) || !strings.Contains(out, "active (running)") {
		t.Errorf("systemctl status does not show that it is active and %q:\n%s", got, out)
	}
}

// wantRestarts checks how often systemd has started the service anew.
func (u *systemdUnit) wantRestarts(want int) {
	u.server.t.Helper()
	if got := u.show(u.unit, "NRestarts"); got != strconv.Itoa(want) {
		u.server.t.Errorf("systemd has restarted the service %s times, want %d", got, want)
	}
}

func TestSystemdUpgrades(t *testing.T) {
	for _, c := range []struct {
		name, unit, http string
		version          int
	}{
		{"notify", "hello", "", 250},
		{"notify-reload", "hello-reload", "", 253},
		{"socket by address", "hello-socket", "", 250},
		{"socket by name", "hello-socket", "systemd=web", 250},
		{"watchdog", "hello-watchdog", "", 250},
	} {
		t.Run(c.name, func(t *testing.T) {
			u := startUnit(t, unitConfig{name: c.unit, version: c.version, listen: c.http})
			pid := u.mainPid(u.unit)
			u.wantServing(1, pid)
			run, err := loadtest.Start(context.Background(), loadtest.Config{Addr: u.addr, Kinds: map[loadtest.Kind]int{
				loadtest.KeepAlive: 8, loadtest.Connect: 2, loadtest.Slow: 2,
			}})
			if err != nil {
				t.Fatal(err)
			}
			defer run.Stop()
			const upgrades = 20
			for i := range upgrades {
				pid = u.reload()
				u.wantServing(i+2, pid)
			}
			report := run.Stop()
			t.Logf("load:\n%v", report)
			if report.Lost() > 0 {
				t.Errorf("lost:\n%v", report)
			}
			u.wantRestarts(0)
			u.wantEveryLine(upgrades + 1)
			u.stopUnit()
		})
	}
}

// wantEveryLine checks that the journal has the first and the last line of each
// generation, of the last one only the first.
func (u *systemdUnit) wantEveryLine(generations int) {
	t := u.server.t
	t.Helper()
	u.do("journalctl", "--sync")
	lines := u.journal(u.unit)
	for g := 1; g <= generations; g++ {
		for _, msg := range []string{"grace: serving", "grace: stopped"} {
			n := 0
			for _, l := range lines {
				if strings.Contains(l, msg) && strings.Contains(l+" ", fmt.Sprintf("generation=%d ", g)) {
					n++
				}
			}
			if want := 1; n != want && !(g == generations && msg == "grace: stopped" && n == 0) {
				t.Errorf("the journal has %d lines %q of generation %d, want %d", n, msg, g, want)
			}
		}
	}
}

// stopUnit stops the service and checks that it ends well.
func (u *systemdUnit) stopUnit() {
	t := u.server.t
	t.Helper()
	u.do("systemctl", "stop", u.unit)
	if got := u.show(u.unit, "ActiveState") + " " + u.show(u.unit, "Result"); got != "inactive success" {
		t.Errorf("the stopped service is %q", got)
	}
	if pid := u.mainPid(u.unit); pid != 0 {
		t.Errorf("the stopped service has the main process %d", pid)
	}
}

// TestSystemdFirstStart: limits and EnvironmentFile= stay those of the first start, whatever
// the unit says when systemd reads it again. A restart takes the new ones.
func TestSystemdFirstStart(t *testing.T) {
	u := startUnit(t, unitConfig{name: "hello", service: "LimitNOFILE=1234\nEnvironmentFile=-/run/hello.env"})
	has := func(pid int, limit, variable string) {
		t.Helper()
		proc := fmt.Sprintf("/proc/%d/", pid)
		if got := u.do("grep", "open files", proc+"limits"); !strings.Contains(got, " "+limit+" ") {
			t.Errorf("process %d has %q, want %s", pid, got, limit)
		}
		if got := u.do("cat", proc+"environ"); !strings.Contains("\x00"+got, "\x00"+variable+"\x00") {
			t.Errorf("process %d has the environment %q, want %s", pid, got, variable)
		}
	}
	u.write("/run/hello.env", "OF=first\n")
	u.do("systemctl", "restart", u.unit)
	has(u.mainPid(u.unit), "1234", "OF=first")
	u.write("/run/hello.env", "OF=second\n")
	u.write("/run/units/"+u.unit+".d/z.conf", "[Service]\nLimitNOFILE=2345\n")
	u.do("systemctl", "daemon-reload")
	if got := u.show(u.unit, "LimitNOFILE"); got != "2345" {
		t.Fatalf("systemd says LimitNOFILE=%s, want 2345", got)
	}
	for range 2 {
		has(u.reload(), "1234", "OF=first")
	}
	u.do("systemctl", "restart", u.unit)
	has(u.mainPid(u.unit), "2345", "OF=second")
	u.stopUnit()
}
