//go:build linux

package integration_test

import (
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	httpload "github.com/julofinance/grace/v3/internal/load"
	"github.com/julofinance/grace/v3/internal/proctest"
	"github.com/julofinance/grace/v3/internal/testing/tlstest"
)

// compat/gracehttp, by a program such as people have written for the original.

func startGracehttp(t *testing.T, args ...string) *proctest.Process {
	t.Helper()
	return proctest.Start(t, proctest.Command{Path: proctest.Build(t, "./gracehttp"), Args: args})
}

// servingOn gives the addresses of the line that a first process writes.
func servingOn(p *proctest.Process, before string) []string {
	return strings.Split(p.WaitLine(before + `Serving (.*) with pid \d+$`)[1], ", ")
}

// startLoads loads each address; the one that speaks TLS with what can't move.
func startLoads(t *testing.T, addrs []string, overTLS string) (stop func()) {
	t.Helper()
	runs := make([]*httpload.Run, len(addrs))
	for i, addr := range addrs {
		cfg := httpload.Config{Addr: addr, Kinds: httpload.Each(1)}
		if addr == overTLS {
			cfg.TLS = &tls.Config{InsecureSkipVerify: true}
			cfg.Kinds = map[httpload.Kind]int{httpload.KeepAlive: 2, httpload.Slow: 1, httpload.Connect: 2}
		}
		run, err := httpload.Start(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		runs[i] = run
	}
	return func() {
		t.Helper()
		for i, run := range runs {
			if report := run.Stop(); report.Lost() != 0 || len(report.Pids) != 4 {
				t.Errorf("%s: %d requests were lost, and %d processes answered, want 0 and 4\n%s", addrs[i], report.Lost(), len(report.Pids), report)
			}
		}
	}
}

// TestGracehttp: three servers are upgraded under load, and nothing is lost. The log
// lines are those that people know.
func TestGracehttp(t *testing.T) {
	p := startGracehttp(t, "-options", "-logger", "-cert", tlstest.File(t))
	addrs := servingOn(p, "^logger: ")
	if len(addrs) != 3 {
		t.Fatalf("serves %q", addrs)
	}
	stop := startLoads(t, addrs, addrs[2])
	pid := p.Pid()
	for range 3 {
		p.WaitLine(fmt.Sprintf(`grace: serving pid=%d`, pid))
		p.Signal(pid, syscall.SIGUSR2)
		p.WaitLine(fmt.Sprintf(`^prestart pid=%d$`, pid))
		m := p.WaitLine(fmt.Sprintf(`^logger: Graceful handoff of (.*) with new pid (\d+) and old pid %d$`, pid))
		if m[1] != strings.Join(addrs, ", ") {
			t.Errorf("the new process serves %s, want %q", m[1], addrs)
		}
		p.WaitLine(fmt.Sprintf(`^logger: Exiting pid %d\.$`, pid))
		p.WaitLine(fmt.Sprintf(`^returned pid=%d: <nil>$`, pid))
		p.WaitGone(pid)
		pid = atoi(t, m[2])
	}
	waitGeneration(p, pid, 4)
	stop()
	p.Signal(pid, syscall.SIGTERM)
	p.WaitLine(fmt.Sprintf(`^returned pid=%d: <nil>$`, pid))
	p.WaitAllGone()
}

func waitGeneration(p *proctest.Process, pid, generation int) {
	p.WaitLine(fmt.Sprintf(`grace: serving pid=%d generation=%d`, pid, generation))
}

func TestGracehttpPreStartProcessRefuses(t *testing.T) {
	refuse := filepath.Join(t.TempDir(), "refuse")
	if err := os.WriteFile(refuse, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	p := startGracehttp(t, "-options", "-refuse", refuse)
	p.WaitLine(`grace: serving`)
	p.Signal(p.Pid(), syscall.SIGUSR2)
	p.WaitLine(`grace: upgrade failed; this process goes on serving.*refused`)
	os.Remove(refuse)
	p.Signal(p.Pid(), syscall.SIGUSR2)
	p.WaitGone(p.Pid())
	waitGeneration(p, p.WaitAlone(), 2)
}

func TestGracehttpSignals(t *testing.T) {
	for _, s := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		t.Run(s.String(), func(t *testing.T) {
			p := startGracehttp(t)
			addr := servingOn(p, `^\S+ \S+ `)[0]
			p.WaitLine(`grace: serving`)
			c := ask(t, addr, "/slow?ms=300&say=hello")
			p.Signal(p.Pid(), s)
			if got := c.answer(); !strings.HasSuffix(got, "hello") {
				t.Errorf("a request under way was answered %q", got)
			}
			p.WaitLine(`^returned pid=\d+: <nil>$`)
		})
	}
	// Go's own, as ever.
	p := startGracehttp(t, "-gracehttp.log=false")
	p.WaitLine(`grace: serving`)
	p.Signal(p.Pid(), syscall.SIGQUIT)
	p.WaitLine(`^SIGQUIT: quit`)
	if n := p.Count(`Serving`); n != 0 {
		t.Errorf("-gracehttp.log=false has written %d lines", n)
	}
	p.WaitAllGone()
}

// TestGracehttpHTTP2: HTTP/2 is spoken where NextProtos names it.
func TestGracehttpHTTP2(t *testing.T) {
	for _, args := range [][]string{nil, {"-h2"}} {
		p := startGracehttp(t, append(args, "-cert", tlstest.File(t))...)
		addr := servingOn(p, `^\S+ \S+ `)[2]
		c, err := tls.DialWithDialer(&net.Dialer{Timeout: proctest.Limit}, "tcp", addr, &tls.Config{
			InsecureSkipVerify: true, NextProtos: []string{"h2", "http/1.1"},
		})
		if err != nil {
			t.Fatal(err)
		}
		if got, want := c.ConnectionState().NegotiatedProtocol == "h2", args != nil; got != want {
			t.Errorf("%q: HTTP/2 is %v, want %v", args, got, want)
		}
		c.Close()
	}
}
