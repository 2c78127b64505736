//go:build linux

package compat

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/load"
	"github.com/julofinance/grace/v3/internal/proctest"
)

func startFasthttp(t *testing.T, args ...string) *proctest.Process {
	t.Helper()
	return proctest.Start(t, proctest.Command{Path: proctest.Build(t, "./fasthttp"), Args: args})
}

// TestFasthttp upgrades a program that calls ServerFastHTTP, as the first version of grace
// had it, under load, and nothing is lost.
func TestFasthttp(t *testing.T) {
	p := startFasthttp(t)
	p.WaitLine(`grace: serving`)
	addr := listensOn(t, p.Pid())
	run, err := load.Start(t.Context(), load.Config{
		Addr: addr, Kinds: map[load.Kind]int{load.KeepAlive: 4, load.Slow: 2, load.Connect: 2, load.Pipelined: 2},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer run.Stop()
	const upgrades = 5
	pid := p.Pid()
	for range upgrades {
		answers(t, run, pid)
		p.Signal(pid, syscall.SIGUSR2)
		p.WaitGone(pid)
		p.WaitLine(fmt.Sprintf(`^ServerFastHTTP has returned pid=%d$`, pid))
		pid = p.WaitAlone()
	}
	answers(t, run, pid)
	report := run.Stop()
	if report.Lost() != 0 || len(report.Pids) != upgrades+1 {
		t.Errorf("%d requests were lost and %d processes answered, want 0 and %d\n%v", report.Lost(), len(report.Pids), upgrades+1, report)
	}
	if n := p.Count(`grace: drained .* cut=0$`); n != upgrades {
		t.Errorf("%d drains without a cut, want %d", n, upgrades)
	}
	p.Signal(pid, syscall.SIGTERM)
	p.WaitAllGone()
}

// TestFasthttpIdle: of two idle connections one asks again when the process drains, and is
// told that it is the last time; the other is closed 5 seconds later.
func TestFasthttpIdle(t *testing.T) {
	p := startFasthttp(t)
	p.WaitLine(`grace: serving`)
	addr := listensOn(t, p.Pid())
	dial := func() (c net.Conn, ask func() *http.Response) {
		c, err := net.DialTimeout("tcp", addr, proctest.Limit)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(2 * proctest.Limit))
		r := bufio.NewReader(c)
		return c, func() *http.Response {
			t.Helper()
			io.WriteString(c, "GET /sized?n=1 HTTP/1.1\r\nHost: x\r\n\r\n")
			resp, err := http.ReadResponse(r, nil)
			if err == nil {
				_, err = io.Copy(io.Discard, resp.Body)
			}
			if err != nil {
				t.Fatal(err)
			}
			return resp
		}
	}
	_, ask := dial()
	idle, askIdle := dial()
	if ask().Close || askIdle().Close {
		t.Error("an answer of a process that serves says Connection: close")
	}
	old, begun := p.Pid(), time.Now()
	p.Signal(old, syscall.SIGUSR2)
	p.WaitLine(`grace: upgrade done; draining`)
	for { // the line comes a moment before handlers are told
		resp := ask()
		if pid := resp.Header.Get("X-Pid"); pid != fmt.Sprint(old) {
			t.Fatalf("an answer in the drain is of process %s, want %d", pid, old)
		}
		if resp.Close {
			break
		}
	}
	if b, err := io.ReadAll(idle); err != nil || len(b) > 0 {
		t.Errorf("the idle connection gave %q, %v; want to be closed", b, err)
	}
	if kept := time.Since(begun); kept < 5*time.Second {
		t.Errorf("the idle connection was closed %v after the upgrade was asked for, want 5 seconds at least", kept)
	}
	p.WaitGone(old)
	p.WaitLine(`grace: drained .* cut=0$`)
	p.WaitAlone()
}

// TestFasthttpFlags: -p and -t are as in all of compat/v1.
func TestFasthttpFlags(t *testing.T) {
	taken, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	_, port, _ := net.SplitHostPort(taken.Addr().String())
	for _, c := range []struct {
		args   string
		status int
		want   string
	}{
		{"-t -p " + port, 0, "the configuration is fine"},
		{"-t -p 70000", 1, "70000"},
		{"-p " + port, 1, "address already in use"},
		{"-p " + port + " -hport 127.0.0.1:0", 1, "address already in use"},
	} {
		p := startFasthttp(t, strings.Fields(c.args)...)
		p.WaitLine(c.want)
		if got := p.WaitExit(p.Pid()).ExitStatus(); got != c.status {
			t.Errorf("%s: it has ended with status %d, want %d", c.args, got, c.status)
		}
	}
}
