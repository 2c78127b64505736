//go:build linux

package main

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/julofinance/grace/v3/internal/proctest"
)

func TestMain(m *testing.M) { proctest.Main(m) }

const upgradeLine = `^ +\d+ +(\d+) -> (\d+|none) `

func startDemo(t *testing.T, args ...string) (p *proctest.Process, tmp string) {
	t.Helper()
	tmp = t.TempDir()
	return proctest.Start(t, proctest.Command{
		Path: proctest.Build(t, "github.com/julofinance/grace/v3/example/demo"),
		Args: append([]string{"-pause", "50ms", "-probation", "50ms", "-clients", "1"}, args...),
		Env:  []string{"TMPDIR=" + tmp},
	}), tmp
}

// leavesNothing checks that the demo has removed what it made: its generations,
// which it has waited for, and its files.
func leavesNothing(t *testing.T, p *proctest.Process, tmp string) {
	t.Helper()
	pids := serverPids(t, p)
	if len(pids) == 0 {
		t.Errorf("the demo has named no server")
	}
	for _, pid := range pids {
		if s, ok := proctest.ReadStat(pid); ok && isDemo(pid) {
			t.Errorf("a server is left: %+v", s)
		}
	}
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
		t.Errorf("files are left: %v, error %v", left, err)
	}
}

func serverPids(t *testing.T, p *proctest.Process) (pids []int) {
	for _, l := range p.Lines() {
		if m := regexp.MustCompile(upgradeLine).FindStringSubmatch(l); m != nil {
			for _, s := range m[1:] {
				if pid, err := strconv.Atoi(s); err == nil {
					pids = append(pids, pid)
				}
			}
		}
	}
	return pids
}

// isDemo guards against a pid that another process has been given since.
func isDemo(pid int) bool {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
	return err == nil && (len(b) == 0 || strings.Contains(string(b), "grace-demo-")) // empty: a zombie
}

// line gives the submatches of the only line that matches.
func line(t *testing.T, p *proctest.Process, pattern string) []string {
	t.Helper()
	if n := p.Count(pattern); n != 1 {
		t.Fatalf("%d lines match %q, want 1", n, pattern)
	}
	return p.WaitLine(pattern)
}

func exits(t *testing.T, p *proctest.Process, want int) {
	t.Helper()
	if ws := p.WaitExit(p.Pid()); ws.ExitStatus() != want {
		t.Errorf("the demo has ended with status %d, want %d", ws.ExitStatus(), want)
	}
}

func TestUpgradesLoseNothing(t *testing.T) {
	p, tmp := startDemo(t, "-upgrades", "3")
	for range 3 {
		p.WaitLine(upgradeLine)
	}
	exits(t, p, 0)
	if m := line(t, p, `^lost: (\d+) of (\d+) requests`); m[1] != "0" || m[2] == "0" {
		t.Errorf("%s", m[0])
	}
	for _, kind := range []string{"keep-alive", "tls", "http2"} {
		if m := line(t, p, `^`+kind+` +1 +(\d+) +(\d+)`); m[1] == "0" || m[2] != "0" {
			t.Errorf("%s", m[0])
		}
	}
	line(t, p, `^upgrades: 3, rolled back: 0; hand-over p50 .* ms, max .* ms`)
	if n := p.Count(upgradeLine); n != 3 {
		t.Errorf("%d lines of upgrades, want 3", n)
	}
	if n := p.Count("\x1b"); n != 0 {
		t.Errorf("%d lines have colours, where there is no terminal", n)
	}
	leavesNothing(t, p, tmp)
}

// TestTLSBothWays: a connection over TLS moves from process to process, or the client is
// told to open another one.
func TestTLSBothWays(t *testing.T) {
	for _, moves := range []bool{true, false} {
		t.Run(fmt.Sprintf("movetls=%t", moves), func(t *testing.T) {
			p, tmp := startDemo(t, "-upgrades", "3", "-kinds", "tls", fmt.Sprintf("-movetls=%t", moves))
			exits(t, p, 0)
			line(t, p, `^lost: 0 of [1-9]`)
			//                              answered lost opened same closed idle resent moved
			want := `^tls +1 +[1-9]\d* +0 +1 +1 +0 +0 +0 +[1-9]`
			if !moves {
				want = `^tls +1 +[1-9]\d* +0 +([2-9]|\d\d+) +0 +[1-9]\d* +0 +0 +0 `
			}
			if p.Count(want) != 1 {
				t.Errorf("no line matches %q", want)
			}
			leavesNothing(t, p, tmp)
		})
	}
}

// The demo would be worth nothing if it could not see a loss.
func TestLossesAreSeen(t *testing.T) {
	for _, how := range []string{"kill", "restart"} {
		t.Run(how, func(t *testing.T) {
			p, tmp := startDemo(t, "-how", how, "-upgrades", "1", "-kinds", "stream=4,slow=4,connect=4")
			exits(t, p, 1)
			if m := line(t, p, `^lost: (\d+) of \d+ requests`); m[1] == "0" {
				t.Errorf("%s, though the server was away", m[0])
			}
			leavesNothing(t, p, tmp)
		})
	}
}

func TestBrokenVersionsAreRolledBack(t *testing.T) {
	for _, when := range []string{"starting", "serving"} {
		t.Run(when, func(t *testing.T) {
			p, tmp := startDemo(t, "-break", "2", "-broken", when, "-upgrades", "2",
				"-pause", "500ms") // the losses to the broken one are counted by then
			exits(t, p, 0)
			line(t, p, `^upgrades: 1, rolled back: 1;`)
			line(t, p, `rolled back after `)
			leavesNothing(t, p, tmp)
		})
	}
}

func TestInterruptEndsEverything(t *testing.T) {
	p, tmp := startDemo(t, "-upgrades", "1000")
	p.WaitLine(upgradeLine)
	p.Signal(p.Pid(), syscall.SIGINT)
	exits(t, p, 1)
	line(t, p, `^demo: interrupted`)
	line(t, p, `^lost: 0 of `)
	leavesNothing(t, p, tmp)
}

// No process can clean up after SIGKILL; the servers see that the demo is gone.
func TestServersDoNotOutliveTheDemo(t *testing.T) {
	p, _ := startDemo(t, "-upgrades", "1000", "-pause", "10s")
	server, err := strconv.Atoi(p.WaitLine(`^Server (\d+) on `)[1])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() && isDemo(server) {
			syscall.Kill(server, syscall.SIGKILL)
		}
	})
	p.Signal(p.Pid(), syscall.SIGKILL)
	proctest.WaitFor(t, proctest.Limit, "the end of the server", func() bool {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(server, &ws, syscall.WNOHANG, nil) // it comes to us
		return pid == server || err == syscall.ECHILD && !isDemo(server)
	})
}
