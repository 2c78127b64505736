//go:build linux

package integration_test

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/proctest"
)

const originalPackage = "github.com/julofinance/grace/v3/integration_test/original"

func TestOriginalFlags(t *testing.T) {
	taken, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	_, port, _ := net.SplitHostPort(taken.Addr().String())
	for _, c := range []struct {
		args string
		code int
		want string
	}{
		// -t opens nothing: the port is taken.
		{"-t -p " + port, 0, "the configuration is fine"},
		{"-t -listen -p " + port, 0, "the configuration is fine"},
		{"-t -hport 127.0.0.1:" + port, 0, fmt.Sprintf("port %q", port)},
		{"-t -p 70000", 1, "70000"},
		{"-t -listen -hport nonsense", 1, "nonsense"},
		// -p beats what the program says.
		{"-p " + port, 1, "address already in use"},
		{"-listen -p " + port, 1, "address already in use"},
		{"-t -p " + port + " -hport :1", 0, fmt.Sprintf("port %q", port)},
		{"-t", 0, `port "0"`},
	} {
		t.Run(c.args, func(t *testing.T) {
			p := proctest.Start(t, proctest.Command{Path: proctest.Build(t, originalPackage), Args: strings.Fields(c.args)})
			if got := p.WaitExit(p.Pid()).ExitStatus(); got != c.code {
				t.Errorf("it ended with status %d; want %d", got, c.code)
			}
			p.WaitLine(c.want)
		})
	}
}

func TestOriginalServe(t *testing.T) {
	p := proctest.Start(t, proctest.Command{
		Path: proctest.Build(t, originalPackage), Args: []string{"-p", "0"}, Env: []string{"GRACE_PIDFILE=" + t.TempDir() + "/pid"},
	})
	p.WaitLine(`grace: serving`)
	p.Signal(p.Pid(), syscall.SIGUSR2)
	p.WaitLine(`grace: serving`)
	p.WaitExit(p.Pid())
	p.WaitAlone()
}

// A server of its own protocol: an open connection ends in the old process, a
// new one goes to the new process.
func TestOriginalListen(t *testing.T) {
	p := proctest.Start(t, proctest.Command{Path: proctest.Build(t, originalPackage), Args: []string{"-listen"}})
	addr := p.WaitLine(`^listening on (\S+)`)[1]
	dial := func() (*bufio.Reader, net.Conn, int) {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(proctest.Limit))
		r := bufio.NewReader(c)
		line, err := r.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		return r, c, atoi(t, strings.TrimSpace(line))
	}
	r, c, old := dial()
	defer c.Close()
	p.Signal(old, syscall.SIGUSR2)
	p.WaitLine(`grace: upgrade done; draining`)
	_, c2, pid := dial()
	if pid == old { // an Accept that was under way may take one more
		c2.Close()
		_, c2, pid = dial()
	}
	defer c2.Close()
	if pid == old {
		t.Errorf("the old process, %d, has accepted", old)
	}
	fmt.Fprintln(c, "still there")
	if got, err := r.ReadString('\n'); got != "still there\n" || err != nil {
		t.Errorf("the old connection gave %q, error %v", got, err)
	}
	c.Close()
	if got := p.WaitExit(old).ExitStatus(); got != 0 {
		t.Errorf("the old process ended with status %d", got)
	}
	c2.Close()
}

// The defaults of the first version.
func TestOriginalTimeouts(t *testing.T) {
	p := proctest.Start(t, proctest.Command{Path: proctest.Build(t, originalPackage), Args: []string{"-hport", freeAddr(t)}})
	p.WaitLine(`grace: serving`)
	p.Signal(p.Pid(), syscall.SIGUSR2)
	if got := p.WaitLine(`upgrade done; draining.* timeout=(\S+)`)[1]; got != "10s" {
		t.Errorf("the drain timeout is %s; want 10s", got)
	}
	p.WaitExit(p.Pid())
}

// TestOriginalRun: Run and RunWithErr serve and upgrade, with the timeout that they are
// given, and as in the first version heed neither -p nor -t.
func TestOriginalRun(t *testing.T) {
	for _, c := range []struct{ function, timeout, want, returned string }{
		{"Run", "7s", "7s", "Run has returned"},
		{"RunWithErr", "0s", "87600h0m0s", "RunWithErr has returned: <nil>"}, // without an end
	} {
		t.Run(c.function, func(t *testing.T) {
			p := proctest.Start(t, proctest.Command{
				Path: proctest.Build(t, originalPackage), Args: []string{"-t", "-p", "1", "-run", c.function, "-timeout", c.timeout, "-hport", freeAddr(t)},
			})
			p.WaitLine(`grace: serving`)
			p.Signal(p.Pid(), syscall.SIGUSR2)
			if got := p.WaitLine(`upgrade done; draining.* timeout=(\S+)`)[1]; got != c.want {
				t.Errorf("the drain timeout is %s, want %s", got, c.want)
			}
			p.WaitLine("^" + c.returned + "$")
			if got := p.WaitExit(p.Pid()).ExitStatus(); got != 0 {
				t.Errorf("the old process has ended with status %d, want 0", got)
			}
			pid := p.WaitAlone()
			waitGeneration(p, pid, 2)
			p.Signal(pid, syscall.SIGTERM)
			p.WaitLine("^" + c.returned + "$")
			p.WaitAllGone()
		})
	}
}

// TestOriginalRunFails: Run ends the program, RunWithErr returns the error.
func TestOriginalRunFails(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for function, want := range map[string]struct {
		status int
		line   string
	}{
		"Run":        {1, "address already in use"},
		"RunWithErr": {0, "RunWithErr has returned: .*address already in use"},
	} {
		t.Run(function, func(t *testing.T) {
			p := proctest.Start(t, proctest.Command{
				Path: proctest.Build(t, originalPackage), Args: []string{"-run", function, "-hport", taken.Addr().String()},
			})
			p.WaitLine(want.line)
			if got := p.WaitExit(p.Pid()).ExitStatus(); got != want.status {
				t.Errorf("the program has ended with status %d, want %d", got, want.status)
			}
			if n := p.Count("Run has returned"); n != 0 {
				t.Error("Run has returned, and not ended the program")
			}
		})
	}
}

// Under socketmaster Listen gives its socket, whatever the argument.
func TestOriginalSocketmaster(t *testing.T) {
	cmd := script(t, "exec %s -hport 192.0.2.1:9", proctest.Build(t, originalPackage))
	p := proctest.Start(t, proctest.Command{
		Path: proctest.Build(t, socketmasterPackage), Args: []string{"-listen", "tcp://127.0.0.1:0", "-command", cmd, "-start", "50"},
	})
	addr := p.WaitLine(`Listening on (\S+)`)[1]
	p.WaitLine(`grace: serving`)
	resp, err := http.Get("http://" + addr + "/pid")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	p.Signal(p.Pid(), syscall.SIGHUP)
	p.WaitLine(`grace: serving`)
	p.WaitLine(`grace: stopped`)
	p.Signal(p.Pid(), syscall.SIGTERM)
	p.WaitAllGone()
}
