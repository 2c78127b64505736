//go:build linux

package integration_test

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/julofinance/grace/v3/internal/proctest"
)

// ENFILE says that the whole system's table of open files is full. To fill it would
// break every program on this machine, and root is let through all the same: so strace
// lets the system calls fail that open a file.
func injectENFILE(t *testing.T, call, when string) []string {
	return []string{"-e", "trace=" + call, "-e", "inject=" + call + ":error=ENFILE" + when, "-o", filepath.Join(t.TempDir(), "trace")}
}

// What a hand-over needs first can't be had: the old process goes on serving.
func TestNoFileForTheHandOver(t *testing.T) {
	for _, call := range []string{"socketpair", "pipe2"} {
		t.Run(call, func(t *testing.T) {
			t.Parallel()
			c := underStrace(t, injectENFILE(t, call, ""), proctest.Build(t, serverPackage))
			run := script(t, `exec %s %s "$@"`, c.Path, strings.Join(c.Args, " "))
			s := startServerAs(t, proctest.Command{Path: run, Args: []string{"-probation", "0"}, Env: noGC})
			before := s.footprint()
			for n := range 3 {
				got := s.upgrade("")
				if !slices.Equal(got.Is, []string{"ErrStart"}) || !got.Upgrade || got.Pid != 0 || !strings.Contains(got.Err, syscall.ENFILE.Error()) {
					t.Fatalf("Upgrade returned %+v; want ErrStart: %v", got, syscall.ENFILE)
				}
				s.mustBe(before)
				if s.Count(`level=ERROR.* hint="`) != n+1 || s.Count(`level=ERROR`) != n+1 {
					t.Errorf("after %d failed upgrades %d error lines were logged; want one for each", n+1, s.Count("level=ERROR"))
				}
			}
			s.Signal(before.pid, syscall.SIGTERM)
			s.WaitAllGone()
		})
	}
}

// Every other accept(2) of the old and the new process fails: what can't be accepted
// now waits in the queue, and what was accepted moves.
func TestMoveWhileAcceptFails(t *testing.T) {
	const kept, upgrades = 200, 3
	m := startMoverAs(t, underStrace(t, injectENFILE(t, "accept4", ":when=1+2"), proctest.Build(t, moveServerPackage)))
	connect := func(n int) (clients []*client) {
		for range n {
			clients = append(clients, m.dial())
		}
		return clients
	}
	clients := connect(kept)
	for range upgrades {
		if got := answers(clients); got[0] > 0 || len(got) != 1 {
			t.Fatalf("answers by pid, 0 for none: %v; want all by one", got)
		}
		old := clients[0].last.pid
		m.Signal(old, syscall.SIGUSR2)
		fresh := connect(50) // by either
		m.WaitLine(fmt.Sprintf(`upgrade done; draining" from=%d`, old))
		if got := answers(fresh); got[0] > 0 {
			t.Errorf("%d of %d new connections were not served", got[0], len(fresh))
		}
		if moved, _, cut := m.drained(); moved < kept || cut != 0 {
			t.Errorf("moved %d and cut off %d connections; want %d or more, and 0", moved, cut, kept)
		}
		m.WaitGone(old)
		for _, c := range fresh {
			c.Close()
		}
	}
	got := answers(clients)
	if got[0] > 0 || len(got) != 1 {
		t.Errorf("answers by pid, 0 for none: %v; want all by one", got)
	}
	if n := m.Count("Accept error: .*" + syscall.ENFILE.Error()); n < kept/4 {
		t.Errorf("%d accepts have failed: it shows nothing", n)
	}
	m.Signal(clients[0].last.pid, syscall.SIGKILL)
	m.WaitAllGone()
}
