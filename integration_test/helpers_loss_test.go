//go:build linux

package integration_test

import (
	"crypto/tls"
	"crypto/x509"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/julofinance/grace/v3/internal/proctest"
	"github.com/julofinance/grace/v3/internal/testing/tlstest"
)

const loadServerPackage = "github.com/julofinance/grace/v3/integration_test/loadserver"

// A loadServer is a running integration_test/loadserver.
type loadServer struct {
	*proctest.Process
	t       testing.TB
	pidFile string
	addr    map[string]string // by the flag's name
	roots   *x509.CertPool    // of -tls
}

// startLoadServer starts one that serves in these ways, which are names of its
// flags: plain, tls, h2c, unix, limited. More of its flags may follow a "--".
func startLoadServer(t testing.TB, ways ...string) *loadServer {
	t.Helper()
	return startLoadServerEnv(t, nil, ways...)
}

func startLoadServerEnv(t testing.TB, env []string, ways ...string) *loadServer {
	t.Helper()
	dir, err := os.MkdirTemp("", "load") // t.TempDir is too long for a unix socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &loadServer{t: t, pidFile: filepath.Join(dir, "app.pid"), addr: map[string]string{}, roots: tlstest.Files(t, dir)}
	args := []string{"-pidfile", s.pidFile, "-certs", dir, "-probation", "50ms"}
	for i, way := range ways {
		if way == "--" {
			args, ways = append(args, ways[i+1:]...), ways[:i]
			break
		}
		addr := "127.0.0.1:0"
		if way == "unix" {
			addr = filepath.Join(dir, "app.sock")
		}
		args = append(args, "-"+way, addr)
	}
	s.Process = proctest.Start(t, proctest.Command{Path: proctest.Build(t, loadServerPackage), Args: args, Env: env})
	for range ways {
		m := s.WaitLine(`^listening (\S+) (\S+)`)
		s.addr[m[1]] = m[2]
	}
	s.WaitLine(`msg="grace: serving"`)
	return s
}

func (s *loadServer) filePid() int {
	s.t.Helper()
	b, err := os.ReadFile(s.pidFile)
	if err != nil {
		s.t.Fatal(err)
	}
	return atoi(s.t, strings.TrimSpace(string(b)))
}

// beginUpgrade upgrades by signal, and returns the old pid and the new one once
// the new one serves.
func (s *loadServer) beginUpgrade() (old, new int) {
	s.t.Helper()
	old = s.filePid()
	s.Signal(old, syscall.SIGUSR2)
	proctest.WaitFor(s.t, proctest.Limit, "a new pid in the PID file", func() bool { new = s.filePid(); return new != old })
	return old, new
}

// upgrade upgrades by signal and waits until the old process is gone.
func (s *loadServer) upgrade() {
	s.t.Helper()
	old, _ := s.beginUpgrade()
	s.WaitGone(old)
}

// upgrades upgrades n times.
func (s *loadServer) upgrades(n int) {
	s.t.Helper()
	for range n {
		s.upgrade()
	}
}

// drained adds up a number of all generations' last log lines: moved, finished
// or cut, say.
func (s *loadServer) drained(what string) (sum int) {
	s.t.Helper()
	for _, line := range s.Lines() {
		if !strings.Contains(line, "grace: drained") {
			continue
		}
		for _, field := range strings.Fields(line) {
			if n, ok := strings.CutPrefix(field, what+"="); ok {
				sum += atoi(s.t, n)
			}
		}
	}
	return sum
}

// rounds is n, or a tenth of it for go test -short.
func rounds(n int) int {
	if testing.Short() {
		return max(n/10, 3)
	}
	return n
}

// lossLong: LOSS_LONG=1 asks for 300 upgrades with every kind of load and every
// kind of server, which takes 10 minutes each.
var lossLong = os.Getenv("LOSS_LONG") != ""

// variantRounds is how many upgrades there are of servers that differ from the
// one that has 300 in any case.
func variantRounds() int {
	if lossLong {
		return rounds(300)
	}
	return rounds(20)
}

func (s *loadServer) tlsConfig() *tls.Config {
	return &tls.Config{RootCAs: s.roots, ServerName: "127.0.0.1"}
}

// needTool finds a program of a Debian package. The Makefile installs it where
// that may be; in CI it must be there.
func needTool(t testing.TB, name, pkg string) string {
	t.Helper()
	for _, dir := range append(filepath.SplitList(os.Getenv("PATH")), "/usr/sbin", "/sbin") {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path
		}
	}
	if ci, _ := strconv.ParseBool(os.Getenv("CI")); ci {
		t.Fatalf("%s is missing: install the package %s", name, pkg)
	}
	t.Skipf("%s is missing: install the package %s", name, pkg)
	return ""
}
