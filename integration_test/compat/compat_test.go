//go:build linux

package compat

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/julofinance/grace/v3"
	"github.com/julofinance/grace/v3/compat/tableflip"
	"github.com/julofinance/grace/v3/internal/load"
	"github.com/julofinance/grace/v3/internal/proctest"
)

var library = []any{grace.Serve, tableflip.New} // so that a cached result is stale when they change

func TestMain(m *testing.M) {
	runtime.KeepAlive(library)
	proctest.Main(m)
}

// example makes a program of an example of tableflip's own: the import path is
// changed, and its function is main. What it serves, which the example leaves to
// http.DefaultServeMux, is in testdata/handlers.go. Neither is a package on disk.
func example(t *testing.T, file, function string) string {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/cloudflare/tableflip").Output()
	if err != nil {
		t.Fatal("go list -m:", err)
	}
	source, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(out)), file))
	if err != nil {
		t.Fatal(err)
	}
	text := string(source)
	for old, new := range map[string]string{
		`"github.com/cloudflare/tableflip`: `"github.com/julofinance/grace/v3/compat/tableflip`,
		"func " + function + "()":          "func main()",
	} {
		if !strings.Contains(text, old) {
			t.Fatalf("%s has no %s", file, old)
		}
		text = strings.ReplaceAll(text, old, new)
	}
	text = regexp.MustCompile(`(?m)^package .*`).ReplaceAllString(text, "package main")
	dir := t.TempDir()
	main := filepath.Join(dir, "main.go")
	if err := os.WriteFile(main, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {
		filepath.Join(here, "example", "main.go"):     main,
		filepath.Join(here, "example", "handlers.go"): filepath.Join(here, "testdata", "handlers.go"),
	}})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(path, overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	return proctest.Build(t, "./example", "-overlay="+path)
}

// TestTableflipExample upgrades tableflip's own examples of HTTP servers, that for
// Windows included, under load. Clients that keep a connection are not among it:
// http.Server.Shutdown, which the examples call, closes what is idle at that moment.
func TestTableflipExample(t *testing.T) {
	for _, file := range []string{"http_example_test.go", "testing/http_example_test.go"} {
		t.Run(file, func(t *testing.T) {
			pidFile := filepath.Join(t.TempDir(), "pid")
			p := proctest.Start(t, proctest.Command{
				Path: example(t, file, "Example_httpShutdown"), Args: []string{"-listen", "127.0.0.1:0", "-pid-file", pidFile},
			})
			p.WaitLine(`grace: serving`)
			addr := listensOn(t, p.Pid())
			upgradeUnderLoad(t, p, addr, pidFile)
		})
	}
}

// TestTableflipTCPExample does the same with that of a TCP server, which waits for no
// connection: the old process has none left when it exits.
func TestTableflipTCPExample(t *testing.T) {
	pidFile := filepath.Join(t.TempDir(), "pid")
	p := proctest.Start(t, proctest.Command{
		Path: example(t, "tcp_example_test.go", "Example_tcpServer"), Args: []string{"-listen", "127.0.0.1:0", "-pid-file", pidFile},
	})
	p.WaitLine(`grace: serving`)
	addr := listensOn(t, p.Pid())
	stop, lost := make(chan struct{}), make(chan error, 4)
	for range cap(lost) {
		go func() {
			for {
				select {
				case <-stop:
					lost <- nil
					return
				default:
				}
				if err := readSentence(addr); err != nil {
					lost <- err
					return
				}
			}
		}()
	}
	for range 3 {
		pid := readPID(t, pidFile)
		p.Signal(pid, syscall.SIGHUP)
		waitGone(p, pid)
		p.WaitAlone()
	}
	close(stop)
	for range cap(lost) {
		if err := <-lost; err != nil {
			t.Error(err)
		}
	}
}

// waitGone waits until a process has ended and the new one knows it: without that an
// Upgrade is refused after a second.
func waitGone(p *proctest.Process, pid int) {
	p.WaitGone(pid)
	p.WaitLine(fmt.Sprintf(`grace: the old process is gone old=%d$`, pid))
}

func readSentence(addr string) error {
	c, err := net.DialTimeout("tcp", addr, proctest.Limit)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(proctest.Limit))
	b, err := io.ReadAll(c)
	if err == nil && !strings.HasSuffix(string(b), ".\n") {
		err = fmt.Errorf("a client was given %q", b)
	}
	return err
}

// upgradeUnderLoad upgrades several times by SIGHUP, and loses nothing.
func upgradeUnderLoad(t *testing.T, p *proctest.Process, addr, pidFile string) {
	t.Helper()
	run, err := load.Start(t.Context(), load.Config{Addr: addr, Kinds: map[load.Kind]int{load.Connect: 8, load.HalfClose: 4}})
	if err != nil {
		t.Fatal(err)
	}
	const upgrades = 5
	pid := p.Pid()
	for range upgrades {
		answers(t, run, pid)
		p.Signal(readPID(t, pidFile), syscall.SIGHUP)
		waitGone(p, pid)
		pid = p.WaitAlone()
	}
	answers(t, run, pid)
	report := run.Stop()
	t.Log(report)
	if report.Lost() != 0 {
		t.Errorf("%d requests were lost", report.Lost())
	}
	if len(report.Pids) != upgrades+1 {
		t.Errorf("%d processes answered, want %d", len(report.Pids), upgrades+1)
	}
}

// answers waits until the process with this pid answers.
func answers(t *testing.T, run *load.Run, pid int) {
	t.Helper()
	proctest.WaitFor(t, proctest.Limit, fmt.Sprintf("an answer of process %d", pid), func() bool {
		pids := run.Snapshot().Pids
		return len(pids) > 0 && pids[len(pids)-1] == pid
	})
}

func readPID(t *testing.T, path string) (pid int) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err == nil {
		_, err = fmt.Sscan(string(b), &pid)
	}
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// listensOn gives the address of the one TCP listener of a process.
func listensOn(t *testing.T, pid int) string {
	t.Helper()
	all, err := proctest.Listens(pid)
	if err != nil || len(all) != 1 {
		t.Fatalf("process %d listens on %v, %v, want one address", pid, all, err)
	}
	return all[0].String()
}
