//go:build linux

package caddy

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/julofinance/grace/v3"
	"github.com/julofinance/grace/v3/internal/load"
	"github.com/julofinance/grace/v3/internal/proctest"
	"github.com/julofinance/grace/v3/internal/testing/tlstest"
)

var library = grace.Serve // so that a cached result is stale when it changes

func TestMain(m *testing.M) {
	runtime.KeepAlive(library)
	proctest.Main(m)
}

func start(t *testing.T, how string, args ...string) (p *proctest.Process, addr string) {
	t.Helper()
	dir := t.TempDir()
	p = proctest.Start(t, proctest.Command{
		Path: proctest.Build(t, "./server"), Args: append(args, "-how", how, "-pidfile", filepath.Join(dir, "pid")),
		Env: []string{"HOME=" + dir, "XDG_CONFIG_HOME=" + dir, "XDG_DATA_HOME=" + dir}, // what Caddy writes to
	})
	addr = p.WaitLine(`^listening (\S+)`)[1]
	p.WaitLine(`msg="grace: serving"`)
	return p, addr
}

// TestUpgrades: ten upgrades under load and two roll backs in between, and no request is
// lost, whether the Upgrader serves what Caddy answers, or Caddy serves a listener of the
// Upgrader. Only the former keeps idle connections.
func TestUpgrades(t *testing.T) {
	const upgrades = 10
	for _, name := range []string{"handler", "network", "handler over TLS", "network over TLS"} {
		t.Run(name, func(t *testing.T) {
			how, overTLS := strings.CutSuffix(name, " over TLS")
			dir := t.TempDir()
			die := filepath.Join(dir, "die")
			args := []string{"-die", die}
			cfg := load.Config{Kinds: map[load.Kind]int{load.KeepAlive: 4, load.Slow: 2, load.Connect: 2, load.Chunked: 2}}
			if overTLS {
				args = append(args, "-certs", dir)
				cfg.Trust = &tls.Config{RootCAs: tlstest.Files(t, dir), ServerName: "127.0.0.1"}
				cfg.Kinds = map[load.Kind]int{load.TLS: 4}
				if how == "handler" { // Caddy's own GOAWAY refuses streams that are on their way
					cfg.Kinds[load.HTTP2] = 2
				}
			}
			p, addr := start(t, how, args...)
			cfg.Addr, cfg.TLSAddr = addr, addr
			run, err := load.Start(context.Background(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer run.Stop()
			answered := func() {
				t.Helper()
				before := run.Snapshot()
				proctest.WaitFor(t, proctest.Limit, "answers to each kind of client", func() bool {
					for k, c := range run.Snapshot().Kinds {
						if c.Answered < before.Kinds[k].Answered+2 {
							return false
						}
					}
					return true
				})
			}
			pid := p.Pid()
			for n := range upgrades {
				answered()
				if n == 1 || n == 5 {
					if err := os.WriteFile(die, nil, 0o600); err != nil {
						t.Fatal(err)
					}
					p.Signal(pid, syscall.SIGUSR2)
					p.WaitLine(`msg="grace: rolled back`)
					if err := os.Remove(die); err != nil {
						t.Fatal(err)
					}
					answered()
				}
				p.Signal(pid, syscall.SIGUSR2)
				p.WaitGone(pid)
				pid = p.WaitAlone()
			}
			answered()
			report := run.Stop()
			t.Log(report)
			if n := report.Lost(); n > 0 {
				t.Errorf("%d requests were lost, want none\n%v", n, report)
			}
			if len(report.Pids) != upgrades+1 {
				t.Errorf("%d processes have answered, want %d", len(report.Pids), upgrades+1)
			}
			p.Signal(pid, syscall.SIGTERM)
			if status := p.WaitExit(pid).ExitStatus(); status != 0 {
				t.Errorf("the last process has ended with status %d, want 0", status)
			}
			p.WaitAllGone()
			if n := p.Count(`msg="grace: drained" .*cut=0`); n != upgrades+1 {
				t.Errorf("%d drains without a cut, want %d", n, upgrades+1)
			}
			if c := report.Kinds[load.KeepAlive]; name == "handler" && c.Same != c.Clients {
				t.Errorf("%d of %d keep-alive clients have their first connection", c.Same, c.Clients)
			}
		})
	}
}

// TestRollBack: the new process dies while the old one drains, and Caddy has been stopped
// there. A request under way is answered, and new ones are.
func TestRollBack(t *testing.T) {
	for _, how := range []string{"handler", "network"} {
		t.Run(how, func(t *testing.T) {
			p, addr := start(t, how)
			old := p.Pid()
			dial := func() (net.Conn, *bufio.Reader) {
				c, err := net.DialTimeout("tcp", addr, proctest.Limit)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { c.Close() })
				c.SetDeadline(time.Now().Add(2 * proctest.Limit))
				return c, bufio.NewReader(c)
			}
			answer := func(r *bufio.Reader) (pid, body string) {
				t.Helper()
				resp, err := http.ReadResponse(r, nil)
				if err != nil {
					t.Fatal(err)
				}
				b, err := io.ReadAll(resp.Body)
				if err != nil {
					t.Fatal(err)
				}
				return resp.Header.Get("X-Pid"), string(b)
			}
			c, r := dial()
			// Its 100 is the sign that the handler reads.
			io.WriteString(c, "POST /echo HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
			if resp, err := http.ReadResponse(r, nil); err != nil || resp.StatusCode != http.StatusContinue {
				t.Fatalf("POST /echo: %v, %v; want 100 Continue", resp, err)
			}
			p.Signal(old, syscall.SIGUSR2)
			next := 0
			fmt.Sscan(p.WaitLine(`msg="grace: upgrade done; draining" .*new=(\d+)`)[1], &next)
			if how == "network" {
				p.WaitLine(fmt.Sprintf(`^Caddy has stopped pid=%d$`, old))
			}
			p.Signal(next, syscall.SIGKILL)
			p.WaitLine(`msg="grace: rolled back`)
			c2, r2 := dial()
			io.WriteString(c2, "GET /sized?n=1 HTTP/1.1\r\nHost: x\r\n\r\n")
			if pid, body := answer(r2); pid != fmt.Sprint(old) || body != "." {
				t.Errorf("a new request: answer %q of process %s, want %q of %d", body, pid, ".", old)
			}
			io.WriteString(c, "whole")
			if pid, body := answer(r); pid != fmt.Sprint(old) || body != "whole" {
				t.Errorf("the request under way: answer %q of process %s, want %q of %d", body, pid, "whole", old)
			}
			c.Close()
			c2.Close()
			p.Signal(old, syscall.SIGUSR2)
			p.WaitGone(old)
			p.Signal(p.WaitAlone(), syscall.SIGTERM)
			p.WaitAllGone()
		})
	}
}
