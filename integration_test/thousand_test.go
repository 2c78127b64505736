//go:build linux

package integration_test

import (
	"flag"
	"fmt"
	"syscall"
	"testing"

	"github.com/julofinance/grace/v3/internal/proctest"
)

var upgradeCount = flag.Int("upgrades", 1000, "how many upgrades TestThousandUpgrades makes")

// TestThousandUpgrades: after 1,000 upgrades a process has what the second
// generation had. No detector of races: each process would start ten times
// slower, and this test looks for what is left behind, not for races.
func TestThousandUpgrades(t *testing.T) {
	upgrades := *upgradeCount
	c := proctest.Command{
		Path: proctest.Build(t, serverPackage, "-race=false"),
		Args: []string{"-probation", "0", "-raw", "unix=" + t.TempDir() + "/s", "-packet", "udp=127.0.0.1:0"},
	}
	s := startServerAs(t, c)
	first := s.Pid()
	type state struct{ files, goroutines, env, args string }
	var second, last state
	var rss [2]int
	look := func() state {
		s.mustGet("/pid")
		return state{s.files(), s.mustGet("/goroutines"), s.mustGet("/env"), s.mustGet("/args")}
	}
	for n := 1; n <= upgrades; n++ {
		s.signalFile(syscall.SIGUSR2)
		s.WaitLine(fmt.Sprintf(`msg="grace: serving" .*generation=%d `, n+1))
		switch n {
		case 1:
			s.WaitGone(first)
			second, rss[0] = settled(look), atoi(t, s.mustGet("/rss"))
		case upgrades:
			s.WaitAlone()
			proctest.Poll(proctest.Limit, func() bool { last = look(); return last == second })
			rss[1] = atoi(t, s.mustGet("/rss"))
		}
	}
	if last != second {
		t.Errorf("generation 2 had\n%+v\ngeneration %d has\n%+v", second, upgrades+1, last)
	}
	if limit := rss[0]*5/4 + 2048; rss[1] > limit {
		t.Errorf("generation 2 had %d kB resident, generation %d has %d; want no more than %d", rss[0], upgrades+1, rss[1], limit)
	}
	if gen := s.mustGet("/gen"); gen != fmt.Sprint(upgrades+1) {
		t.Errorf("generation %s serves, want %d", gen, upgrades+1)
	}
	if n := s.Count(`level=(ERROR|WARN)`); n > 0 {
		t.Errorf("%d errors or warnings were logged, want none", n)
	}
	t.Logf("resident: %d kB in generation 2, %d kB in generation %d", rss[0], rss[1], upgrades+1)
}

// settled looks until it has seen the same three times in a row: what the last
// requests have left ends soon, but not at once.
func settled[T comparable](look func() T) (seen T) {
	same := 0
	proctest.Poll(proctest.Limit, func() bool {
		if now := look(); now == seen {
			same++
		} else {
			seen, same = now, 1
		}
		return same == 3
	})
	return seen
}
