//go:build linux

package integration_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/julofinance/grace/v3/internal/proctest"
	"github.com/julofinance/grace/v3/internal/testing/tlstest"
)

// readmeCode gives the pieces of Go in README.md, in their order, and that of
// docs/signals.md.
func readmeCode(t *testing.T) (pieces []string) {
	t.Helper()
	for _, page := range []string{"README.md", "docs/signals.md"} {
		b, err := os.ReadFile("../" + page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile("(?s)```go\n(.*?)```").FindAllStringSubmatch(string(b), -1) {
			pieces = append(pieces, m[1])
		}
	}
	if len(pieces) != 4 {
		t.Fatalf("README.md and docs/signals.md have %d pieces of Go, want the smallest program, the servers, the embedding and the signals", len(pieces))
	}
	return pieces
}

// paste builds a program of what users have, and of what they paste.
func paste(t *testing.T, imports, code string) (path string) {
	t.Helper()
	dir := t.TempDir()
	main := filepath.Join(dir, "main.go")
	if err := os.WriteFile(main, []byte("package main\n\nimport (\n\t\""+strings.ReplaceAll(imports, " ", "\"\n\t\"")+"\"\n)\n\n"+code), 0o600); err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(dir, "pasted")
	if out, err := exec.Command("go", "build", "-o", path, main).CombinedOutput(); err != nil {
		t.Fatalf("what README.md says does not build: %v\n%s\n%s", err, out, code)
	}
	return path
}

const readmeHandler = `
var fooBarHandler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, os.Getpid()) })
`

// TestREADMESmallest: the first program of README.md.
func TestREADMESmallest(t *testing.T) {
	code := strings.TrimPrefix(readmeCode(t)[0], "import \"github.com/julofinance/grace/v3\"\n")
	addr := freeAddr(t)
	code = strings.Replace(code, `":9000"`, `"`+addr+`"`, 1)
	path := paste(t, "fmt log net/http os github.com/julofinance/grace/v3", readmeHandler+"func main() {\n"+code+"}\n")
	mustUpgradePasted(t, path, "tcp", addr, "/foo/bar", nil)
}

// TestServeTLS: the same over TLS.
func TestServeTLS(t *testing.T) {
	path, addr, trust := pasteServeTLS(t, "")
	mustUpgradePasted(t, path, "tcp", addr, "/", trust)
}

// TestMoveOverTLSOfServeTLS: with MoveTLS, a connection is answered by the second process.
func TestMoveOverTLSOfServeTLS(t *testing.T) {
	path, addr, trust := pasteServeTLS(t, ", grace.MoveTLS(true)")
	p := proctest.Start(t, proctest.Command{Path: path, Dir: shortDir(t), Env: []string{"GRACE_PIDFILE=app.pid"}})
	p.WaitLine(`grace: serving`)
	trust.MinVersion = tls.VersionTLS13
	c := dialRaw(t, "tcp", addr)
	c.over(trust)
	want := func(pid int) {
		t.Helper()
		if resp, got := c.get("/"); got != fmt.Sprint(pid) || resp.Close {
			t.Errorf("process %s answers, and says Connection: close: %t; want %d, false", got, resp.Close, pid)
		}
	}
	want(p.Pid())
	p.Signal(p.Pid(), syscall.SIGUSR2)
	p.WaitGone(p.Pid())
	want(p.WaitAlone())
}

// pasteServeTLS gives a program that serves by ServeTLS, with these options, where it listens,
// and what a client has to trust.
func pasteServeTLS(t *testing.T, options string) (path, addr string, trust *tls.Config) {
	t.Helper()
	dir, addr := t.TempDir(), freeAddr(t)
	roots := tlstest.Files(t, dir)
	code := fmt.Sprintf("	if err := grace.ServeTLS(%q, %q, %q, fooBarHandler%s); err != nil {\n		log.Fatal(err)\n	}\n}\n",
		addr, filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"), options)
	path = paste(t, "fmt log net/http os github.com/julofinance/grace/v3", readmeHandler+"func main() {\n"+code)
	return path, addr, &tls.Config{RootCAs: roots, ServerName: "127.0.0.1"}
}

// TestREADMEServers: ListenAndServe.
func TestREADMEServers(t *testing.T) {
	addr := freeAddr(t)
	code := strings.Replace(readmeCode(t)[1], `":9000"`, `"`+addr+`"`, 1)
	path := paste(t, "fmt log net/http os time github.com/julofinance/grace/v3", readmeHandler+"func main() {\n"+code+"}\n")
	mustUpgradePasted(t, path, "tcp", addr, "/", nil)
	mustUpgradePasted(t, path, "unix", "admin.sock", "/", nil)
}

// TestREADMEEmbedding: the daemon's lines, with its own signals or without.
func TestREADMEEmbedding(t *testing.T) {
	pieces := readmeCode(t)
	const servers = "	public, admin := &http.Server{Handler: fooBarHandler}, &http.Server{Handler: fooBarHandler}\n"
	imports := "context errors fmt log net/http os time github.com/julofinance/grace/v3"
	for name, own := range map[string]bool{"signals of grace": false, "signals of its own": true} {
		t.Run(name, func(t *testing.T) {
			addr := freeAddr(t)
			code, imports := strings.Replace(pieces[2], `":9000"`, `"`+addr+`"`, 1), imports
			if own {
				code = strings.Replace(code, `grace.PIDFile("app.pid")`, `grace.PIDFile("app.pid"), grace.NoSignals()`, 1)
				code = strings.Replace(code, "u.HTTP(public", pieces[3]+"u.HTTP(public", 1)
				imports += " os/signal syscall"
			}
			path := paste(t, imports, readmeHandler+"func main() {\n"+servers+code+"}\n")
			mustUpgradePasted(t, path, "tcp", addr, "/", nil)
			mustUpgradePasted(t, path, "unix", "admin.sock", "/", nil)
		})
	}
}

// mustUpgradePasted starts the program, upgrades it as an operator would, and stops it.
func mustUpgradePasted(t *testing.T, path, network, addr, url string, over *tls.Config) {
	t.Helper()
	dir := shortDir(t)
	if network == "unix" {
		addr = filepath.Join(dir, addr)
	}
	p := proctest.Start(t, proctest.Command{Path: path, Dir: dir, Env: []string{"GRACE_PIDFILE=app.pid"}})
	client := http.Client{Timeout: proctest.Limit, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			if over != nil {
				return (&tls.Dialer{Config: over}).DialContext(ctx, network, addr)
			}
			return new(net.Dialer).DialContext(ctx, network, addr)
		},
	}}
	s := &server{t: t, Process: p, pidFile: filepath.Join(dir, "app.pid"), client: &client, addr: "pasted"}
	for range 2 {
		p.WaitLine(`grace: serving`)
		pid := s.filePid()
		if got := atoi(t, s.mustGet(url)); got != pid {
			t.Errorf("process %d answers, and the PID file names %d", got, pid)
		}
		if pid == p.Pid() {
			p.Signal(pid, syscall.SIGUSR2)
			p.WaitGone(pid)
			continue
		}
		p.Signal(pid, syscall.SIGTERM)
	}
	p.WaitAllGone()
}
