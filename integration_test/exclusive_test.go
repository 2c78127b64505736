//go:build linux

package integration_test

import (
	"crypto/tls"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/julofinance/grace/v3/internal/proctest"
	"github.com/julofinance/grace/v3/internal/testing/exclusivetest"
	"github.com/julofinance/grace/v3/internal/testing/tlstest"
)

const ledgerPackage = "github.com/julofinance/grace/v3/integration_test/ledger"

// A ledger is that program, in whatever generation.
type ledger struct {
	*exclusivetest.Server
	t    *testing.T
	path string // of the file that one process at a time may have
}

func startLedger(t *testing.T, args ...string) *ledger {
	t.Helper()
	l := &ledger{t: t, path: filepath.Join(t.TempDir(), "ledger.txt")}
	l.Server = exclusivetest.Start(t, proctest.Build(t, ledgerPackage), append(args, "-file", l.path)...)
	return l
}

// breakNext makes the next call of acquire fail.
func (l *ledger) breakNext(how string) {
	l.t.Helper()
	if err := os.WriteFile(l.path+".break", []byte(how), 0o644); err != nil {
		l.t.Fatal(err)
	}
}

// mustHaveOneOwner fails if two processes had the file at once, by what they have printed
// while they had it. It was acquired n times.
func (l *ledger) mustHaveOneOwner(n int) {
	l.t.Helper()
	owner, acquired := "", 0
	line := regexp.MustCompile(`^(acquired|released) (pid=\d+)$`)
	for _, text := range l.Process.Lines() {
		switch m := line.FindStringSubmatch(text); {
		case m == nil:
		case m[1] == "acquired":
			acquired++
			if owner != "" {
				l.t.Errorf("acquired by %s, and %s has it", m[2], owner)
			}
			owner = m[2]
		case owner != m[2]:
			l.t.Errorf("released by %s, and %q has it", m[2], owner)
		default:
			owner = ""
		}
	}
	if acquired != n {
		l.t.Errorf("it was acquired %d times, want %d", acquired, n)
	}
	if n := l.Count(`^two have it`); n > 0 {
		l.t.Errorf("acquire was called %d times while another process had it", n)
	}
}

// TestExclusiveServe: the one-liner, grace.Serve with Exclusive, loses nothing through 20
// upgrades and two that fail.
func TestExclusiveServe(t *testing.T) {
	l := startLedger(t, "-serve", freeAddr(t))
	l.upgrades(exclusivetest.Clients{KeepAlive: 8, Connect: 3})
}

// TestExclusiveFiveListeners: nor does a daemon that serves HTTP, HTTPS, HTTP/2 without
// TLS, a TCP protocol of its own and UDP out of one file, on any of them.
func TestExclusiveFiveListeners(t *testing.T) {
	dir := t.TempDir()
	roots := tlstest.Files(t, dir)
	l := startLedger(t, "-cert", filepath.Join(dir, "cert.pem"), "-key", filepath.Join(dir, "key.pem"))
	l.Trust = &tls.Config{RootCAs: roots, ServerName: "127.0.0.1"}
	l.upgrades(exclusivetest.Clients{KeepAlive: 4, Connect: 2, Lines: 3, HTTPS: 2, HTTP2: 2, H2C: 2, UDP: 3})
}

// upgrades upgrades 20 times under load. Before two of these, the new process fails to
// acquire, or dies in it.
func (l *ledger) upgrades(c exclusivetest.Clients) {
	l.t.Helper()
	load := l.Load(c)
	load.WaitMore(100)
	fails := map[int]string{7: "fail", 14: "die"}
	lines := map[string]string{
		"fail": `grace: upgrade failed; this process goes on serving.*this version can't read the ledger`,
		"die":  `grace: upgrade failed; this process goes on serving.*exit status 3`,
	}
	const n = 20
	for i := range n {
		if how := fails[i]; how != "" {
			l.breakNext(how)
			load.Forget()
			old := l.Ask()
			l.WaitLine(lines[how])
			load.WaitMore(50)
			if now := l.FilePid(); now != old {
				l.t.Fatalf("%s: the PID file names %d, and %d serves", how, now, old)
			}
			load.Pause()
		}
		load.Forget()
		l.Upgrade()
		load.WaitMore(50)
		load.Pause()
	}
	load.Stop()
	l.mustHaveOneOwner(1 + n + len(fails)) // it comes back from those that fail
}
