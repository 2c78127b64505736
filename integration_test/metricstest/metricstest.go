//go:build linux

package metricstest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/julofinance/grace/v3"
	"github.com/julofinance/grace/v3/internal/proctest"
)

// variable names a file: as long as that is there, a new process does not work.
const variable = "METRICSTEST_SICK"

// Main is for TestMain. In a process that Upgrades has started it is the program: event counts,
// and say tells in one line what was counted.
func Main(m *testing.M, event func(grace.Event), say func() string) {
	if os.Getenv(variable) == "" {
		proctest.Main(m)
	}
	if err := serve(event, say); err != nil {
		fmt.Println("exits:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func serve(event func(grace.Event), say func() string) error {
	go func() { // the end of the test process
		io.Copy(io.Discard, os.Stdin)
		os.Exit(99)
	}()
	u, err := grace.New(grace.Events(event), grace.Probation(0), grace.HealthCheck(func(context.Context, *http.Client) error {
		if _, err := os.Stat(os.Getenv(variable)); err == nil {
			return errors.New("it is sick")
		}
		return nil
	}))
	if err != nil {
		return err
	}
	ln, err := u.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println("listening", ln.Addr())
	u.HTTP(&http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, say()) })}, ln)
	err = u.Run(context.Background())
	fmt.Printf("pid=%d says %s\n", os.Getpid(), say())
	return err
}

// Upgrades makes an upgrade that is rolled back, since the new process does not work, and one
// that succeeds; an idle connection moves then. It gives what the old process says after the
// first and at its end, and what the new one says.
func Upgrades(t *testing.T) (rolledBack, old, new string) {
	t.Helper()
	sick := filepath.Join(t.TempDir(), "sick")
	if err := os.WriteFile(sick, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := proctest.Start(t, proctest.Command{Path: self, Env: []string{variable + "=" + sick}})
	addr := p.WaitLine(`^listening (\S+)`)[1]
	p.WaitLine(`grace: serving`)
	get := func(c *http.Client) string {
		t.Helper()
		resp, err := c.Get("http://" + addr)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	// Events come soon after the log's lines.
	until := func(word string) (said string) {
		t.Helper()
		c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: proctest.Limit}
		if !proctest.Poll(proctest.Limit, func() bool { said = get(c); return strings.Contains(said, word) }) {
			t.Fatalf("it says %s within %v, want %q in it", said, proctest.Limit, word)
		}
		return said
	}

	p.Signal(p.Pid(), syscall.SIGUSR2)
	p.WaitLine(`grace: rolled back`)
	rolledBack = until("rolled")
	if err := os.Remove(sick); err != nil {
		t.Fatal(err)
	}

	keeps := &http.Client{Transport: &http.Transport{MaxConnsPerHost: 1}, Timeout: proctest.Limit}
	t.Cleanup(keeps.CloseIdleConnections)
	get(keeps)
	p.Signal(p.Pid(), syscall.SIGUSR2)
	old = p.WaitLine(fmt.Sprintf(`^pid=%d says (.*)`, p.Pid()))[1]
	p.WaitGone(p.Pid())
	return rolledBack, old, until("alone")
}
