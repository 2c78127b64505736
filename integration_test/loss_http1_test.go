//go:build linux

package integration_test

import (
	"context"
	"crypto/tls"
	"strings"
	"testing"
	"time"

	httpload "github.com/julofinance/grace/v3/internal/load"
	"github.com/julofinance/grace/v3/internal/proctest"
)

// netDelay is what the relay between client and server adds each way.
const netDelay = 2 * time.Millisecond

func startHTTPLoad(t testing.TB, cfg httpload.Config) *httpload.Run {
	t.Helper()
	run, err := httpload.Start(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { run.Stop() })
	return run
}

// waitAnswers waits until each kind has n answers more than it has now.
func waitAnswers(t testing.TB, run *httpload.Run, n int) {
	t.Helper()
	before := run.Snapshot()
	if !proctest.Poll(proctest.Limit, func() bool {
		for k, c := range run.Snapshot().Kinds {
			if c.Answered < before.Kinds[k].Answered+n {
				return false
			}
		}
		return true
	}) {
		t.Fatalf("not every kind has had %d more answers within %v:\n%v", n, proctest.Limit, run.Snapshot())
	}
}

// mustLoseNone ends a load, and fails the test if something was lost. With same,
// every connection that is kept must still be the first.
func mustLoseNone(t testing.TB, run *httpload.Run, upgrades int, same bool) httpload.Report {
	t.Helper()
	rep := run.Stop()
	if n := rep.Lost(); n > 0 {
		t.Errorf("%d requests were lost, want none", n)
	}
	if len(rep.Pids) < upgrades/2 {
		t.Errorf("%d processes have answered in %d upgrades; the load has hardly met them", len(rep.Pids), upgrades)
	}
	for k, c := range rep.Kinds {
		if c.Answered == 0 {
			t.Errorf("%s: no answers", k)
		}
		if same && k.Keeps() && (c.Same != c.Clients || c.Opened != c.Clients || c.Resent > 0) {
			t.Errorf("%s: %d of %d clients have their first connection, %d were opened, %d requests sent again",
				k, c.Same, c.Clients, c.Opened, c.Resent)
		}
	}
	if t.Failed() {
		t.Logf("the load after %d upgrades:\n%v", upgrades, rep)
	}
	return rep
}

// short are the kinds that are over soon, so that an old process has soon
// drained; long are the others.
var (
	short = []httpload.Kind{
		httpload.KeepAlive, httpload.Connect, httpload.Pipelined, httpload.Expect,
		httpload.Head, httpload.NotModified, httpload.Chunked, httpload.HalfClose,
	}
	long = []httpload.Kind{httpload.Slow, httpload.Stream, httpload.Trickle, httpload.Upload}
)

func kinds(n int, list ...httpload.Kind) map[httpload.Kind]int {
	m := map[httpload.Kind]int{}
	for _, k := range list {
		m[k] = n
	}
	return m
}

// TestLossless300 upgrades 300 times in a row. An upgrade lasts as long as the longest
// request that the old process has, so the kinds that take long come in for a part of
// them only; with LOSS_LONG=1 they are there all the time (10 minutes).
func TestLossless300(t *testing.T) {
	s := startLoadServer(t, "plain")
	mix := kinds(2, short...)
	mix[httpload.KeepAlive] = 16
	run := startHTTPLoad(t, httpload.Config{Addr: s.addr["plain"], Delay: netDelay, Kinds: mix})
	waitAnswers(t, run, 1)
	total, part := rounds(300), rounds(12)
	if lossLong {
		part = total
	}
	s.upgrades((total - part) / 2)
	// Two more of them, one without the relay.
	far := startHTTPLoad(t, httpload.Config{Addr: s.addr["plain"], Delay: netDelay, Kinds: kinds(2, long...)})
	near := startHTTPLoad(t, httpload.Config{Addr: s.addr["plain"], Kinds: kinds(2, httpload.Kinds...)})
	waitAnswers(t, far, 1)
	s.upgrades(part)
	waitAnswers(t, near, 1)
	mustLoseNone(t, far, part, true)
	mustLoseNone(t, near, part, true)
	s.upgrades(total - part - (total-part)/2)
	waitAnswers(t, run, 1)
	rep := mustLoseNone(t, run, total, true)
	mustCutNone(t, s)
	t.Logf("%d upgrades:\n%v", total, rep)
}

// TestLosslessTLS is the same over TLS: what is kept must end there, by
// Connection: close.
func TestLosslessTLS(t *testing.T) {
	s := startLoadServer(t, "tls")
	run := startHTTPLoad(t, httpload.Config{
		Addr: s.addr["tls"], Delay: netDelay, Kinds: httpload.Each(2), TLS: s.tlsConfig(),
	})
	waitAnswers(t, run, 1)
	n := variantRounds()
	s.upgrades(n)
	rep := mustLoseNone(t, run, n, false)
	if total := rep.Total(); total.Moved > 0 || total.Announced == 0 {
		t.Errorf("%d connections were moved, %d ended with Connection: close; want none and some\n%v", total.Moved, total.Announced, rep)
	}
	mustCutNone(t, s)
}

// TestLosslessMovedTLS is the same with MoveTLS: each client keeps the connection with
// which it has begun, and the one handshake of it.
func TestLosslessMovedTLS(t *testing.T) {
	s := startLoadServer(t, "tls", "--", "-movetls")
	config := s.tlsConfig()
	config.MinVersion = tls.VersionTLS13
	far := startHTTPLoad(t, httpload.Config{Addr: s.addr["tls"], Delay: netDelay, Kinds: kinds(2, short...), TLS: config})
	near := startHTTPLoad(t, httpload.Config{Addr: s.addr["tls"], Kinds: kinds(2, short...), TLS: config})
	waitAnswers(t, far, 1)
	n := rounds(100)
	s.upgrades(n)
	waitAnswers(t, near, 1)
	mustLoseNone(t, near, n, true)
	rep := mustLoseNone(t, far, n, true)
	mustCutNone(t, s)
	t.Logf("%d upgrades:\n%v", n, rep)
}

// TestLosslessUnix is the same over a unix socket: its connections move too.
func TestLosslessUnix(t *testing.T) {
	s := startLoadServer(t, "unix")
	near := startHTTPLoad(t, httpload.Config{Network: "unix", Addr: s.addr["unix"], Kinds: kinds(2, short...)})
	far := startHTTPLoad(t, httpload.Config{Network: "unix", Addr: s.addr["unix"], Delay: netDelay, Kinds: kinds(2, short...)})
	waitAnswers(t, near, 1)
	n := variantRounds()
	s.upgrades(n)
	mustLoseNone(t, near, n, true)
	mustLoseNone(t, far, n, true)
	mustCutNone(t, s)
}

// TestLosslessWrapped is the same through a listener that wraps ours, and that
// limits how many connections are in: these are finished, and each gives its
// place back. Nor does it help a handler to say that they stay.
func TestLosslessWrapped(t *testing.T) {
	for _, flags := range [][]string{{"-most", "20"}, {"-most", "20", "-insist"}} { // 16 clients
		t.Run(strings.Join(flags, " "), func(t *testing.T) {
			s := startLoadServer(t, append([]string{"limited", "--"}, flags...)...)
			run := startHTTPLoad(t, httpload.Config{Addr: s.addr["limited"], Delay: netDelay, Kinds: kinds(2, short...)})
			waitAnswers(t, run, 1)
			n := variantRounds()
			s.upgrades(n)
			waitAnswers(t, run, 1)
			rep := mustLoseNone(t, run, n, false)
			if total := rep.Total(); total.Moved > 0 || total.Announced == 0 {
				t.Errorf("%d connections were moved, %d ended with Connection: close; want none and some\n%v", total.Moved, total.Announced, rep)
			}
			mustCutNone(t, s)
		})
	}
}

// mustCutNone fails the test if a drain's log line says that it cut off something.
func mustCutNone(t testing.TB, s *loadServer) {
	t.Helper()
	if cut := s.drained("cut"); cut > 0 {
		t.Errorf("the log says that %d connections were cut off", cut)
	}
}
