//go:build linux

// Package exporter runs upgrades of a server that github.com/prometheus/exporter-toolkit
// serves: it calls http.Server's Serve and ServeTLS itself, and sets the handler before.
package exporter

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

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

// webConfig writes the toolkit's configuration, with a certificate for 127.0.0.1.
func webConfig(t *testing.T, dir string) (path string, roots *x509.CertPool) {
	t.Helper()
	path = filepath.Join(dir, "web.yml")
	config := "tls_server_config:\n  cert_file: cert.pem\n  key_file: key.pem\n"
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	return path, tlstest.Files(t, dir)
}

// TestUpgrades: five upgrades under load and two roll backs in between, and no request is
// lost; then it stops, and web.Serve of each process has returned.
func TestUpgrades(t *testing.T) {
	for _, how := range []string{"plain", "tls"} {
		t.Run(how, func(t *testing.T) {
			dir := t.TempDir()
			die := filepath.Join(dir, "die")
			args := []string{"-die", die, "-pidfile", filepath.Join(dir, "pid")}
			cfg := load.Config{Kinds: map[load.Kind]int{load.KeepAlive: 4, load.Slow: 2, load.Connect: 2}}
			if how == "tls" {
				config, roots := webConfig(t, dir)
				args = append(args, "-config", config)
				cfg.TLS = &tls.Config{RootCAs: roots, ServerName: "127.0.0.1"}
			}
			p := proctest.Start(t, proctest.Command{Path: proctest.Build(t, "./server"), Args: args})
			cfg.Addr = p.WaitLine(`^listening (\S+)`)[1]
			p.WaitLine(`msg="grace: serving"`)
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
			pid, backs := p.Pid(), 0
			for step := range 7 {
				answered()
				if step == 1 || step == 4 {
					if err := os.WriteFile(die, nil, 0o600); err != nil {
						t.Fatal(err)
					}
					backs++
					p.Signal(pid, syscall.SIGUSR2)
					proctest.WaitFor(t, proctest.Limit, "the roll back", func() bool { return p.Count(`msg="grace: rolled back`) == backs })
					if err := os.Remove(die); err != nil {
						t.Fatal(err)
					}
					continue
				}
				p.Signal(pid, syscall.SIGUSR2)
				p.WaitGone(pid)
				p.WaitLine(fmt.Sprintf(`web.Serve has returned pid=%d$`, pid))
				pid = p.WaitAlone()
			}
			answered()
			report := run.Stop()
			if n := report.Lost(); n > 0 {
				t.Errorf("%d requests were lost, want none\n%v", n, report)
			}
			p.Signal(pid, syscall.SIGTERM)
			if status := p.WaitExit(pid).ExitStatus(); status != 0 {
				t.Errorf("the last process has ended with status %d, want 0", status)
			}
			p.WaitAllGone()
			if n := p.Count(`msg="grace: drained" .*cut=0`); n != 6 {
				t.Errorf("%d drains without a cut, want 6", n)
			}
			if how == "plain" {
				if c := report.Kinds[load.KeepAlive]; c.Same != c.Clients {
					t.Errorf("%d of %d keep-alive clients have their first connection", c.Same, c.Clients)
				}
			}
		})
	}
}
