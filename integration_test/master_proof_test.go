//go:build linux

package integration_test

import (
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/julofinance/grace/v3/internal/proctest"
)

// A master that has passed no socket can't be proven to be one. It gets no
// signal: here it is this test, which one would end.
func TestMasterWithoutSockets(t *testing.T) {
	hangups := make(chan os.Signal, 9)
	signal.Notify(hangups, syscall.SIGHUP, syscall.SIGUSR1)
	defer signal.Stop(hangups)
	pid := fmt.Sprintf("EINHORN_MASTER_PID=%d", os.Getpid())
	for name, c := range map[string]struct {
		master string
		env    []string
	}{
		"einhorn":             {"einhorn", []string{"EINHORN_FD_COUNT=0", pid}},
		"einhorn, not there":  {"einhorn", []string{"EINHORN_FD_COUNT=0"}},
		"old einhorn":         {"einhorn", []string{"EINHORN_FDS=", pid}},
		"start_server, empty": {"start_server", []string{"SERVER_STARTER_PORT="}},
		"start_server, ;":     {"start_server", []string{"SERVER_STARTER_PORT=;"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := startServerAs(t, proctest.Command{Path: proctest.Build(t, serverPackage), Env: c.env, Args: []string{"-ready", "2s"}})
			s.WaitLine(`it has to do the upgrades.* master=` + c.master)
			r := s.upgrade()
			if want := "the " + c.master + " that has started this process: it has passed no socket"; !strings.Contains(r.Err, want) {
				t.Errorf("Upgrade gave %+v; want %q", r, want)
			}
			s.WaitLine(`upgrade failed; this process goes on serving.* hint="send the ` + c.master + ` the signal yourself: kill -HUP \d+"`)
			if got := s.servingPid(); got != s.Pid() {
				t.Errorf("process %d serves, want %d", got, s.Pid())
			}
		})
	}
	if len(hangups) > 0 {
		t.Errorf("the test was sent %v", <-hangups)
	}
}

// A master that runs as root has started the server as another user, which may not
// signal it: the log says what to do instead, and that works.
func TestMasterOfRoot(t *testing.T) {
	setpriv := needProgram(t, "setpriv", "util-linux")
	if os.Getuid() != 0 {
		t.Skip("this test needs root")
	}
	m := startUnder(t, "tcp", func(args []string) proctest.Command {
		for d := filepath.Dir(args[3]); strings.HasPrefix(d, os.TempDir()+"/"); d = filepath.Dir(d) {
			os.Chmod(d, 0o755)
		}
		if err := os.Chown(filepath.Dir(args[3]), 65534, 65534); err != nil {
			t.Fatal(err)
		}
		run := "exec " + setpriv + " --reuid=65534 --regid=65534 --clear-groups %s"
		return socketmaster(t, "tcp://127.0.0.1:0", run, "-tokopedia", "-start", "20", "-wait-child-notif")(args)
	})
	child := m.pid()
	m.WaitLine(fmt.Sprintf(`can't be told that this process is ready" from=%d .*of uid 0, and this one is of uid 65534.* hint="run the socketmaster as the user of this process; or, as its user, send .*: kill -USR1 %d"`, child, m.Pid()))
	m.Signal(child, syscall.SIGUSR2)
	line := m.WaitLine(`upgrade failed; this process goes on serving.*of uid 0, and this one is of uid 65534.* hint="(.*)"`)
	command := regexp.MustCompile(`kill -HUP \d+`).FindString(line[1])
	if want := fmt.Sprintf("kill -HUP %d", m.Pid()); command != want {
		t.Fatalf("the advice is %q; want %q in it", line[1], want)
	}
	if out, err := run(t, "sh", "-c", command); err != nil {
		t.Fatalf("%s: %v, %s", command, err, out)
	}
	m.waitNewest()
	m.Signal(m.Pid(), syscall.SIGUSR1) // as the advice of the first says
	m.WaitGone(child)
	m.stop(syscall.SIGTERM)
}
