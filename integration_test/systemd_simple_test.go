//go:build linux

package integration_test

import (
	"fmt"
	"strings"
	"testing"
)

// Without Type=notify systemd takes the service for ended when the old process exits.
// The upgrade is refused, and the service lives.
func TestSystemdSimple(t *testing.T) {
	for _, typ := range []string{"simple", "exec"} {
		t.Run(typ, func(t *testing.T) {
			u := startUnit(t, unitConfig{name: "hello", service: "Type=" + typ})
			u.waitJournal(u.unit, `grace: serving`)
			pid := u.mainPid(u.unit)
			r := u.upgrade()
			if fmt.Sprint(r.Is) != "[ErrNotSupported]" || !strings.Contains(r.Err, fmt.Sprintf("SYSTEMD_EXEC_PID=%d, no NOTIFY_SOCKET", pid)) {
				t.Errorf("Upgrade gave %+v; want ErrNotSupported, and why", r)
			}
			u.do("systemctl", "reload", u.unit)
			u.waitJournal(u.unit, `upgrade failed; this process goes on serving.*without Type=notify.* hint="set Type=notify in the unit's \[Service\] section`)
			if got := u.servingPid(); got != pid || u.mainPid(u.unit) != pid {
				t.Errorf("process %d serves, and MainPID is %d; want %d", got, u.mainPid(u.unit), pid)
			}
			u.wantRestarts(0)
			// What a server starts has the variable, and another pid.
			u.do("systemd-run", "--quiet", "--unit=shell", "--service-type=exec", "sh", "-c",
				"/usr/local/bin/server -http tcp=127.0.0.1:0 -pidfile /run/hello/shell.pid -probation 50ms; exit $?")
			u.waitJournal("shell.service", `grace: serving`)
			u.do("sh", "-c", "kill -USR2 $(cat /run/hello/shell.pid)")
			u.waitJournal("shell.service", `grace: upgrade done; draining`)
			u.stopUnit()
		})
	}
}

// With PIDFile= systemd finds the next process there, whatever the type is.
func TestSystemdSimpleWithPIDFile(t *testing.T) {
	u := startUnit(t, unitConfig{name: "hello", service: "Type=simple\nPIDFile=/run/hello/hello.pid\nExecReload="})
	u.waitJournal(u.unit, `grace: serving`)
	pid := u.mainPid(u.unit)
	for range 3 {
		u.do("sh", "-c", "kill -USR2 $(cat /run/hello/hello.pid)")
		next := pid
		u.wait("another main process", func() bool { next = u.mainPid(u.unit); return next != pid })
		pid = next
		if got := u.servingPid(); got != pid {
			t.Errorf("process %d serves, and MainPID is %d", got, pid)
		}
	}
	u.wantRestarts(0)
	u.stopUnit()
}

// systemd's TERM goes to both processes of a hand-over, and each passes it on to
// the other. Nothing is cut off.
func TestSystemdStopCutsNothing(t *testing.T) {
	for _, mode := range []string{"control-group", "mixed"} {
		t.Run(mode, func(t *testing.T) {
			u := startUnit(t, unitConfig{name: "hello", args: []string{"-probation", "0", "-drain", "10m"}, service: "KillMode=" + mode})
			h := u.hold()
			u.startReload()
			u.successor(u.mainPid(u.unit))
			h2 := u.hold()
			u.do("systemctl", "stop", "--no-block", u.unit)
			u.waitJournal(u.unit, `grace: stopping.* now=false`)
			u.waitRefused()
			h2.release()
			h.release()
			u.waitShow(u.unit, "ActiveState", "inactive")
			if got := u.show(u.unit, "Result"); got != "success" {
				t.Errorf("the service ended with %s", got)
			}
			for _, l := range u.journal(u.unit) {
				if strings.Contains(l, "level=WARN") || strings.Contains(l, "level=ERROR") || strings.Contains(l, "SIGKILL") {
					t.Error(l)
				}
			}
		})
	}
}
