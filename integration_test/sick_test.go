//go:build linux

package integration_test

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	httpload "github.com/julofinance/grace/v3/internal/load"
	"github.com/julofinance/grace/v3/internal/proctest"
)

// A sickness is a new version that is ready and does not work, and how that is seen.
type sickness struct {
	name    string
	how     string // see sick.go of loadserver
	way     string // in which it serves
	options []string
	why     string // the log's reason, a pattern
	few     int    // each takes long: so many upgrades, unless LOSS_LONG is set
	// harmless: not even a client that opens a connection meets the sick version. (Where the
	// queue is full, the kernel lets one that finds no room in it try again, and give up.)
	harmless bool
}

var sicknesses = []sickness{
	{name: "handlers say 500", how: "500", way: "plain", options: []string{"-check", "http://test/sized?n=1"}, why: `HealthCheck: it says 500`},
	{name: "handlers hang", how: "hang", way: "plain", options: []string{"-check", "http://test/sized?n=1"}, why: `HealthCheck: .*context deadline exceeded`},
	{name: "no Accept returns", how: "deadlock", way: "plain", options: []string{"-check", "http://test/sized?n=1"}, why: `HealthCheck: .*context deadline exceeded`, harmless: true},
	{name: "it is stopped", how: "stop", way: "plain", options: []string{"-check", "http://test/sized?n=1"}, why: `HealthCheck: .*context deadline exceeded`},
	{name: "handlers say 500 over TLS", how: "500", way: "tls", options: []string{"-check", "https://127.0.0.1/sized?n=1"}, why: `HealthCheck: it says 500`},
	{name: "handlers hang on a unix socket", how: "hang", way: "unix", options: []string{"-check", "http://test/sized?n=1"}, why: `HealthCheck: .*context deadline exceeded`},
	{name: "handlers say 500 to a raw connection", how: "500", way: "plain", options: []string{"-check", "tcp=127.0.0.1:0"}, why: `HealthCheckConn: it says 500`},
	{name: "no Accept returns, and there is no check", how: "deadlock", way: "plain", options: []string{"-backlog", "4", "-probation", "2s"}, why: `it has accepted no connection on tcp \S+ for 2s, while the queue there was full`, few: 3},
	{name: "it is stopped, and there is no check", how: "stop", way: "plain", why: `it did not answer for 10s`, few: 1},
}

// TestSickVersion: a new version is ready, lives and does not work, 20 times in a row. Each
// time it is killed, and the old process serves on: clients that are connected to it lose no
// request, and keep their connection. Those that connect while the sick version accepts
// meet it: the log of the test says how many. All figures:
//
//	LOSS_LONG=1 go test ./integration_test -run TestSickVersion -v
func TestSickVersion(t *testing.T) {
	for _, c := range sicknesses {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.test(t)
		})
	}
}

func (c *sickness) test(t *testing.T) {
	file := filepath.Join(t.TempDir(), "sick")
	s := startLoadServer(t, append([]string{c.way, "--", "-sick", file}, c.options...)...)
	old := s.filePid()
	cfg := httpload.Config{Addr: s.addr[c.way], Limit: time.Minute}
	switch c.way {
	case "unix":
		cfg.Network = "unix"
	case "tls":
		cfg.TLS = s.tlsConfig()
	}
	cfg.Kinds = map[httpload.Kind]int{httpload.KeepAlive: 8}
	keep := startHTTPLoad(t, cfg)
	connected := func() bool { return keep.Snapshot().Kinds[httpload.KeepAlive].Opened == 8 }
	proctest.WaitFor(t, proctest.Limit, "every client to be connected", connected)
	waitAnswers(t, keep, 50)
	cfg.Kinds = map[httpload.Kind]int{httpload.Connect: 16}
	come := startHTTPLoad(t, cfg)
	waitAnswers(t, come, 16)
	if err := os.WriteFile(file, []byte(c.how), 0o600); err != nil {
		t.Fatal(err)
	}
	n := rounds(20)
	if c.few > 0 && !lossLong {
		n = c.few
	}
	for range n {
		s.Signal(old, syscall.SIGUSR2)
		s.WaitLine(fmt.Sprintf(`rolled back; this process accepts again" from=%d .*the new process was ready and did not work; .*%s`, old, c.why))
		if pid := s.filePid(); pid != old {
			t.Fatalf("the PID file names %d, want %d", pid, old)
		}
		waitAnswers(t, keep, 20)
		waitAnswers(t, come, 16) // those that met it are back
	}
	if k := keep.Snapshot().Kinds[httpload.KeepAlive]; k.Same != 8 || k.Opened != 8 {
		t.Errorf("%d of 8 clients have their first connection, and %d were opened", k.Same, k.Opened)
	}
	kept, met := mustLoseNone(t, keep, 2, false), come.Stop()
	if c.harmless && met.Lost() > 0 {
		t.Errorf("%d requests over connections of their own were lost, want none:\n%v", met.Lost(), met)
	}
	t.Logf("%d upgrades to a sick version: connected before, %d requests answered, %d lost; with a connection each, %d answered, %d lost",
		n, kept.Total().Answered, kept.Lost(), met.Total().Answered, met.Lost())
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	s.upgrade() // to one that is well
	s.WaitAlone()
}
