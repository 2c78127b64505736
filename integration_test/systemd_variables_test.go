//go:build linux

package integration_test

import (
	"strings"
	"testing"

	"github.com/julofinance/grace/v3/internal/proctest"
)

// Nothing is served if a variable of socket activation is not true, and the
// error names it.
func TestActivationVariables(t *testing.T) {
	for _, c := range []struct{ name, script, want string }{
		{"pid of another", `LISTEN_PID=1 LISTEN_FDS=1`, `LISTEN_PID=.*another process`},
		{"pid is no number", `LISTEN_PID=x LISTEN_FDS=1`, `LISTEN_PID=.*not a process id`},
		{"pid is missing", `LISTEN_FDS=1`, `LISTEN_PID=.*not a process id`},
		{"count is no number", `LISTEN_PID=$$ LISTEN_FDS=one`, `LISTEN_FDS=.*not a number`},
		{"count is missing", `LISTEN_PID=$$`, `LISTEN_FDS=.*not a number`},
		{"count below zero", `LISTEN_PID=$$ LISTEN_FDS=-1`, `LISTEN_FDS=.*not a number`},
		{"descriptor is closed", `LISTEN_PID=$$ LISTEN_FDS=1`, `LISTEN_FDS=.*descriptor 3 is closed`},
		{"descriptor is a file", `exec 3</dev/null; LISTEN_PID=$$ LISTEN_FDS=1`, `LISTEN_FDS=.*descriptor 3 is not a socket`},
		{"too few names", `LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=web`, `LISTEN_FDNAMES=.*1 names for LISTEN_FDS=2`},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := proctest.Start(t, proctest.Command{Path: "/bin/sh", Args: []string{
				"-c", c.script + ` exec "$0" "$@"`, proctest.Build(t, serverPackage), "-http", "tcp=127.0.0.1:0",
			}})
			p.WaitLine(`server: exits.*` + c.want)
			if status := p.WaitExit(p.Pid()).ExitStatus(); status != 1 {
				t.Errorf("exit status %d, want 1", status)
			}
			if n := p.Count(`^listening`); n > 0 {
				t.Error("it listens all the same")
			}
		})
	}
}

// What systemd has passed is not seen by what the server starts, but for the
// notify socket.
func TestSystemdVariables(t *testing.T) {
	u := startUnit(t, unitConfig{name: "hello-socket", listen: "systemd=web", service: "WatchdogSec=1min"})
	for _, generation := range []int{1, 2} {
		if generation == 2 {
			u.reload()
		}
		env := u.mustGet("/run?arg=env")
		for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_USEC", "WATCHDOG_PID", "GRACE_HANDOVER"} {
			if hasVariable(env, name) {
				t.Errorf("generation %d: what the server starts sees %s", generation, name)
			}
		}
		if !hasVariable(env, "NOTIFY_SOCKET") {
			t.Errorf("generation %d: what the server starts does not see NOTIFY_SOCKET", generation)
		}
	}
}

func hasVariable(env, name string) bool {
	return strings.Contains("\n"+env, "\n"+name+"=")
}
