//go:build linux

package integration_test

import (
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/julofinance/grace/v3/internal/proctest"
)

const einhornPackage = "github.com/julofinance/grace/v3/integration_test/einhorn"

// einhorn gives the command of a stand-in that starts the server by argv, in
// which %s is the server with its arguments; none means those themselves.
func einhorn(t *testing.T, bind string, argv []string, args ...string) func([]string) proctest.Command {
	return func(serverArgs []string) proctest.Command {
		server := append([]string{proctest.Build(t, serverPackage)}, serverArgs...)
		for i, a := range serverArgs {
			if a == "-http" { // einhorn's sockets are matched by their address
				_, addr, _ := strings.Cut(bind, "=")
				serverArgs[i+1] = strings.TrimSuffix(bind, addr) + addr
			}
		}
		server = append(server[:1:1], serverArgs...)
		if len(argv) > 0 {
			server = append(argv[:len(argv)-1:len(argv)-1], strings.Replace(argv[len(argv)-1], "%s", strings.Join(server, " "), 1))
		}
		_, addr, _ := strings.Cut(bind, "=")
		args := append([]string{"-c", filepath.Join(shortDir(t), "c"), "-b", addr}, args...)
		return proctest.Command{Path: proctest.Build(t, einhornPackage), Args: append(append(args, "--"), server...)}
	}
}

func TestEinhorn(t *testing.T) {
	for name, c := range map[string]struct {
		network string
		argv    []string
		args    []string
	}{
		"by path":         {network: "tcp"},
		"by descriptor":   {network: "tcp", args: []string{"-command-socket-as-fd"}},
		"closed":          {network: "tcp", args: []string{"-command-socket-as-fd", "-closed"}},
		"old variables":   {network: "tcp", args: []string{"-old"}},
		"unix":            {network: "unix"},
		"script":          {network: "tcp", argv: []string{"/bin/sh", "-c", "exec %s"}},
		"without an exec": {network: "tcp", argv: []string{"/bin/sh", "-c", "%s; exit $?"}},
	} {
		t.Run(name, func(t *testing.T) {
			bind := "tcp=" + freeAddr(t)
			if c.network == "unix" {
				bind = "unix=" + filepath.Join(shortDir(t), "s")
			}
			m := startUnder(t, c.network, einhorn(t, bind, c.argv, c.args...))
			m.WaitLine("Received a manual ACK")
			m.underLoad(func() {
				for range upgrades {
					// USR2 is einhorn's own request to drain, so the upgrade is
					// asked of the master.
					m.Signal(m.Pid(), syscall.SIGHUP)
					m.waitNext()
				}
			})
			if n := m.Count("ignoring ACK"); n != 0 {
				t.Errorf("%d acknowledgements were not understood", n)
			}
			m.stop(syscall.SIGTERM)
			m.mustLogAll(m.Lines())
		})
	}
}

// SIGUSR2 is einhorn's request to drain, in the worker that it starts as well.
func TestEinhornDrainSignal(t *testing.T) {
	m := startUnder(t, "tcp", einhorn(t, "tcp="+freeAddr(t), nil))
	m.WaitLine("Received a manual ACK")
	h := m.hold()
	m.Signal(m.Pid(), syscall.SIGUSR2)
	m.WaitLine(`msg="grace: stopping".*signal="user defined signal 2"`)
	h.release()
	m.WaitAllGone()
}

// A program may ask for the upgrade itself.
func TestEinhornUpgradeCall(t *testing.T) {
	m := startUnder(t, "tcp", einhorn(t, "tcp="+freeAddr(t), nil))
	m.WaitLine("Received a manual ACK")
	got, err := m.get("/upgrade")
	if r := parseResult(t, got); err != nil || r.Err != "" {
		t.Errorf("Upgrade gave %+v, error %v; want none", r, err)
	}
	m.waitNext()
	m.stop(syscall.SIGINT)
}

// Einhorn starts a worker that died again.
func TestEinhornCrash(t *testing.T) {
	m := startUnder(t, "tcp", einhorn(t, "tcp="+freeAddr(t), nil))
	m.Signal(m.pid(), syscall.SIGKILL)
	m.waitNewest()
	if got := m.servingPid(); got != m.pid() {
		t.Errorf("process %d serves; want %d", got, m.pid())
	}
	m.stop(syscall.SIGTERM)
}
