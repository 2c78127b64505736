//go:build linux

package integration_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/proctest"
	"github.com/julofinance/grace/v3/internal/testing/tlstest"
)

// compat/endless, by a program such as people have written for the original.

func startEndless(t *testing.T, args ...string) (p *proctest.Process, first string) {
	t.Helper()
	p = proctest.Start(t, proctest.Command{Path: proctest.Build(t, "./endless"), Args: args})
	first = p.WaitLine(fmt.Sprintf(`^begins pid=%d 127.0.0.1:0 on (\S+)$`, p.Pid()))[1]
	waitGeneration(p, p.Pid(), 1)
	return p, first
}

// TestEndless: servers that begin one after the other, TLS among them, are upgraded
// under load, and nothing is lost. The hooks run before and after.
func TestEndless(t *testing.T) {
	p, first := startEndless(t, "-later", "200ms", "-cert", tlstest.File(t))
	var addrs []string
	var overTLS string
	proctest.WaitFor(t, proctest.Limit, "three listeners", func() bool {
		all, err := proctest.Listens(p.Pid())
		if err != nil {
			t.Fatal(err)
		}
		addrs = nil
		for _, a := range all {
			addrs = append(addrs, a.String())
			if a.Addr().String() == "127.0.0.2" {
				overTLS = a.String()
			}
		}
		return len(addrs) == 3 && overTLS != ""
	})
	stop := startLoads(t, addrs, overTLS)
	pid := p.Pid()
	for n := range 3 {
		p.Signal(pid, syscall.SIGHUP)
		p.WaitLine(fmt.Sprintf(`^pre 1 pid=%d$`, pid))
		m := p.WaitLine(`^begins pid=(\d+) 127.0.0.1:0 on (\S+)$`)
		if m[2] != first {
			t.Errorf("the new process listens on %s, want %s", m[2], first)
		}
		waitGeneration(p, atoi(t, m[1]), n+2)
		p.WaitLine(fmt.Sprintf(`^post 1 pid=%d$`, pid))
		for _, name := range []string{"first", "second", "tls"} {
			p.WaitLine(fmt.Sprintf(`^returned %s pid=%d: <nil>$`, name, pid))
		}
		p.WaitGone(pid)
		pid = atoi(t, m[1])
	}
	stop()
	p.Signal(pid, syscall.SIGTERM)
	p.WaitLine(fmt.Sprintf(`^exits pid=%d$`, pid))
	p.WaitAllGone()
}

// TestEndlessWithoutOneServer: a new version that has a server less is ready a while
// after its last one has begun.
func TestEndlessWithoutOneServer(t *testing.T) {
	only := filepath.Join(t.TempDir(), "only")
	p, _ := startEndless(t, "-only", only)
	proctest.WaitFor(t, proctest.Limit, "two listeners", func() bool {
		all, err := proctest.Listens(p.Pid())
		return err == nil && len(all) == 2
	})
	if err := os.WriteFile(only, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	p.Signal(p.Pid(), syscall.SIGHUP)
	p.WaitLine(`grace: this version does not use sockets`)
	p.WaitLine(fmt.Sprintf(`^returned second pid=%d: <nil>$`, p.Pid()))
	p.WaitGone(p.Pid())
	waitGeneration(p, p.WaitAlone(), 2)
}

// TestEndlessHooksBeforeBegin: the hooks of a server run from BeforeBegin on, which may tell
// others whom to signal.
func TestEndlessHooksBeforeBegin(t *testing.T) {
	p, _ := startEndless(t, "-early", "-only", ".")
	p.WaitLine(fmt.Sprintf(`^post %d pid=%d$`, syscall.SIGUSR1, p.Pid()))
	p.Signal(p.Pid(), syscall.SIGTERM)
	p.WaitAllGone()
}

func TestEndlessSignals(t *testing.T) {
	p, addr := startEndless(t)
	for _, s := range []syscall.Signal{syscall.SIGUSR1, syscall.SIGUSR2} { // the latter cuts nothing off yet
		p.Signal(p.Pid(), s)
		p.WaitLine(fmt.Sprintf(`^pre %d pid=%d$`, s, p.Pid()))
		p.WaitLine(fmt.Sprintf(`^post %d pid=%d$`, s, p.Pid()))
	}
	p.Signal(p.Pid(), syscall.SIGTSTP) // and is not stopped
	c := ask(t, addr, "/slow?ms=300&say=hello")
	p.Signal(p.Pid(), syscall.SIGTERM)
	p.WaitLine(fmt.Sprintf(`^pre %d pid=%d$`, syscall.SIGTERM, p.Pid()))
	p.WaitLine(fmt.Sprintf(`^post %d pid=%d$`, syscall.SIGTERM, p.Pid()))
	p.Signal(p.Pid(), syscall.SIGTERM) // again: it is told already
	if got := c.answer(); !strings.HasSuffix(got, "hello") {
		t.Errorf("a request under way was answered %q", got)
	}
	p.WaitLine(`^exits`)
}

func TestEndlessHammer(t *testing.T) {
	for _, args := range [][]string{{"-hammer", "-1ns"}, {"-hammer", "200ms"}} {
		t.Run(args[1], func(t *testing.T) {
			p, addr := startEndless(t, args...)
			c := ask(t, addr, "/slow?ms=3600000")
			p.Signal(p.Pid(), syscall.SIGTERM)
			p.WaitLine(fmt.Sprintf(`^post %d`, syscall.SIGTERM))
			if args[1] == "-1ns" { // waits for ever
				p.Signal(p.Pid(), syscall.SIGUSR2)
			}
			p.WaitLine(`^exits`)
			if got := c.answer(); got != "" {
				t.Errorf("what was cut off was answered %q", got)
			}
		})
	}
}

// TestEndlessRolledBack: a process that has handed over, and whose new one is dead, is as
// it was before: SIGUSR2 cuts nothing off, and SIGTERM stops it.
func TestEndlessRolledBack(t *testing.T) {
	p, addr := startEndless(t, "-hammer", "-1ns", "-only", ".")
	c := askHalf(t, addr)
	next := upgradeEndless(t, p)
	p.Signal(next, syscall.SIGKILL)
	p.WaitLine(`grace: rolled back; this process accepts again`)
	p.Signal(p.Pid(), syscall.SIGUSR2)
	p.WaitLine(fmt.Sprintf(`^post %d pid=%d$`, syscall.SIGUSR2, p.Pid()))
	if got := c.finish(); !strings.HasSuffix(got, "whole") {
		t.Errorf("a request under way was answered %q", got)
	}
	if got := ask(t, addr, "/slow?ms=0&say=hello").answer(); !strings.HasSuffix(got, "hello") {
		t.Errorf("a new request was answered %q", got)
	}
	p.Signal(p.Pid(), syscall.SIGTERM)
	p.WaitLine(fmt.Sprintf(`^returned first pid=%d: <nil>$`, p.Pid()))
	p.WaitLine(fmt.Sprintf(`^exits pid=%d$`, p.Pid()))
	p.WaitAllGone()
}

// upgradeEndless upgrades, and gives the new process once the old one drains.
func upgradeEndless(t *testing.T, p *proctest.Process) (pid int) {
	t.Helper()
	p.Signal(p.Pid(), syscall.SIGHUP)
	p.WaitLine(fmt.Sprintf(`^post %d pid=%d$`, syscall.SIGHUP, p.Pid()))
	return atoi(t, p.WaitLine(`grace: serving pid=(\d+) generation=2`)[1])
}

// TestEndlessHammerAfterUpgrade: SIGUSR2 ends a process that has handed over, in its drain
// and just before.
func TestEndlessHammerAfterUpgrade(t *testing.T) {
	for moment, line := range map[string]string{"stands by": `grace: the new process is ready; standing by`, "drains": `grace: upgrade done; draining`} {
		t.Run(moment, func(t *testing.T) {
			p, addr := startEndless(t, "-hammer", "-1ns", "-only", ".")
			c := askHalf(t, addr)
			p.Signal(p.Pid(), syscall.SIGHUP)
			p.WaitLine(line)
			p.Signal(p.Pid(), syscall.SIGUSR2)
			if got := c.answer(); got != "" {
				t.Errorf("what was cut off was answered %q", got)
			}
			p.WaitLine(fmt.Sprintf(`^returned first pid=%d: <nil>$`, p.Pid()))
			p.WaitGone(p.Pid())
			waitGeneration(p, p.WaitAlone(), 2)
		})
	}
}

// TestEndlessHammeredAndRolledBack: what was cut off can't serve again, and says so.
func TestEndlessHammeredAndRolledBack(t *testing.T) {
	p, addr := startEndless(t, "-hammer", "-1ns", "-only", ".")
	c := askHalf(t, addr)
	next := upgradeEndless(t, p)
	p.Halt(next) // the old process waits for it when it has drained
	p.Signal(p.Pid(), syscall.SIGUSR2)
	if got := c.answer(); got != "" {
		t.Errorf("what was cut off was answered %q", got)
	}
	p.Signal(next, syscall.SIGKILL)
	p.WaitLine(`grace: rolled back; this process accepts again`)
	p.WaitLine(fmt.Sprintf(`^returned first pid=%d: http: Server closed$`, p.Pid()))
	p.WaitAllGone()
}

// askHalf sends a request whose body does not end before finish.
func askHalf(t *testing.T, addr string) asked {
	t.Helper()
	c := dialRaw(t, "tcp", addr)
	// Its 100 is the sign that the handler reads.
	c.send("POST /echo HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
	if resp, err := http.ReadResponse(c.in, nil); err != nil || resp.StatusCode != http.StatusContinue {
		t.Fatalf("POST /echo: %v, %v; want 100 Continue", resp, err)
	}
	return asked{t, c.Conn}
}

// finish sends the body, and gives the answer.
func (a asked) finish() string {
	if _, err := io.WriteString(a.conn, "whole"); err != nil {
		a.t.Error(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(a.conn), nil)
	if err != nil {
		a.t.Error(err)
		return ""
	}
	b, _ := io.ReadAll(resp.Body)
	return string(b)
}

// An asked is a request under way.
type asked struct {
	t    *testing.T
	conn net.Conn
}

// ask sends a request, which the server has begun when it returns.
func ask(t *testing.T, addr, path string) asked {
	t.Helper()
	c, err := net.DialTimeout("tcp", addr, proctest.Limit)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(proctest.Limit))
	// The answer to the first is the sign that the second is read: one is read with
	// the other.
	fmt.Fprintf(c, "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nokGET %s HTTP/1.1\r\nHost: x\r\n\r\n", path)
	r := bufio.NewReaderSize(c, 16) // reads no further than it must
	resp, err := http.ReadResponse(r, nil)
	if err == nil {
		_, err = io.Copy(io.Discard, resp.Body)
	}
	if err != nil {
		t.Fatal(err)
	}
	return asked{t, c}
}

// answer gives the whole answer; "" if there was none.
func (a asked) answer() string {
	b, _ := io.ReadAll(a.conn)
	return string(b)
}
