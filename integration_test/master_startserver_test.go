//go:build linux

package integration_test

import (
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/julofinance/grace/v3/internal/proctest"
)

// needProgram finds a program of another package, or skips the test; in CI it
// fails it.
func needProgram(t *testing.T, name, debianPackage string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err == nil {
		return path
	}
	if inCI() {
		t.Fatalf("%s is missing; install the package %s", name, debianPackage)
	}
	t.Skipf("%s is missing; install the package %s", name, debianPackage)
	return ""
}

// startServerCommand gives the command of the real start_server.
func startServerCommand(t *testing.T, bind, run string, args ...string) func([]string) proctest.Command {
	path := needProgram(t, "start_server", "libserver-starter-perl")
	network, addr, _ := strings.Cut(bind, "=")
	return func(serverArgs []string) proctest.Command {
		serverArgs[1] = bind
		cmd := script(t, run, proctest.Build(t, serverPackage)+" "+strings.Join(serverArgs, " "))
		flag := "--port=" + addr
		if network == "unix" {
			flag = "--path=" + addr
		}
		return proctest.Command{Path: path, Args: append(append([]string{flag}, args...), "--", cmd)}
	}
}

func TestStartServer(t *testing.T) {
	for name, c := range map[string]struct{ network, run, interval string }{
		"tcp": {"tcp", "exec %s", "1"},
		// The old process is told to drain before the new one can be ready.
		"unix":            {"unix", "exec %s", "0"},
		"without an exec": {"tcp", "%s\nexit $?", "0"},
	} {
		t.Run(name, func(t *testing.T) {
			bind := "tcp=" + freeAddr(t)
			if c.network == "unix" {
				bind = "unix=" + filepath.Join(shortDir(t), "s")
			}
			m := startUnder(t, c.network, startServerCommand(t, bind, c.run, "--interval="+c.interval))
			m.underLoad(func() {
				for range upgrades {
					m.upgrade()
				}
			})
			m.stop(syscall.SIGTERM)
			m.mustLogAll(m.Lines())
		})
	}
}

// start_server starts a server that died again.
func TestStartServerCrash(t *testing.T) {
	m := startUnder(t, "tcp", startServerCommand(t, "tcp="+freeAddr(t), "exec %s"))
	m.Signal(m.pid(), syscall.SIGKILL)
	m.WaitLine(`died unexpectedly|seems to have failed`)
	m.waitNewest()
	if got := m.servingPid(); got != m.pid() {
		t.Errorf("process %d serves; want %d", got, m.pid())
	}
	m.stop(syscall.SIGTERM)
}
