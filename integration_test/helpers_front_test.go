//go:build linux

package integration_test

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/proctest"
	"github.com/julofinance/grace/v3/internal/testing/logtest"
)

// A front is a proxy of another project that stands before the server.
type front struct {
	name string
	cmd  *exec.Cmd
	// says gives what it has logged elsewhere; may be nil.
	says func() string
}

// boundSocket gives a socket that listens, for a front to take over, so that no port is
// taken twice.
func boundSocket(t testing.TB) (socket *os.File, addr string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if socket, err = ln.(*net.TCPListener).File(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { socket.Close() })
	return socket, ln.Addr().String()
}

// start starts it, in a process group of its own, which ends with the test, and gives what
// it prints.
func (f front) start(t testing.TB) (out *logtest.Buffer) {
	t.Helper()
	out = &logtest.Buffer{}
	f.cmd.Stdout, f.cmd.Stderr = out, out
	f.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	f.cmd.WaitDelay = time.Second
	if err := f.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); f.cmd.Wait() }()
	t.Cleanup(func() {
		f.cmd.Process.Signal(syscall.SIGTERM) // its workers with it
		select {
		case <-ended:
		case <-time.After(proctest.Limit):
			syscall.Kill(-f.cmd.Process.Pid, syscall.SIGKILL)
			t.Errorf("%s has not stopped within %v", f.name, proctest.Limit)
		}
		if t.Failed() {
			t.Logf("%s says:\n%s", f.name, out)
			if f.says != nil {
				t.Log(f.says())
			}
		}
	})
	return out
}

// startHAProxy starts HAProxy with what config adds to haproxyConfig; the sockets, which we
// have bound, are fd@3 and so on. It sends nothing twice.
func startHAProxy(t testing.TB, config string, sockets ...*os.File) (out *logtest.Buffer) {
	t.Helper()
	path := needTool(t, "haproxy", "haproxy")
	file := filepath.Join(t.TempDir(), "haproxy.cfg")
	if err := os.WriteFile(file, []byte(haproxyConfig+config), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "-db", "-f", file)
	cmd.ExtraFiles = sockets
	return front{name: "HAProxy", cmd: cmd}.start(t)
}

const haproxyConfig = `
global
	nbthread 1
	log stdout format raw local0
defaults
	mode http
	log global
	option httplog
	option dontlog-normal
	retries 0
	retry-on none
	no option redispatch
	timeout connect 30s
	timeout client 30s
	timeout server 30s
`
