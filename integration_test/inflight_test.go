//go:build linux

package integration_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/julofinance/grace/v3/internal/proctest"
)

// Another process of the same user has so many descriptors in flight that the kernel
// lets none through from the old process to the new one: the upgrade succeeds without
// moves, which is said, and nothing is lost. Once that other process is gone all is as
// ever.
func TestTooManyDescriptorsInFlight(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can be another user, and for root itself there is no such limit")
	}
	const kept = 50
	user := &syscall.Credential{Uid: 54322, Gid: 54322, NoSetGroups: true}
	run := script(t, `ulimit -n 300; exec %s "$@"`, proctest.Build(t, serverPackage))
	for d := filepath.Dir(run); strings.HasPrefix(d, os.TempDir()+"/"); d = filepath.Dir(d) {
		os.Chmod(d, 0o755)
	}
	s := startServerAs(t, proctest.Command{Path: run, Args: []string{"-probation", "0"}, Credential: user})
	m := &mover{Process: s.Process, t: t, network: "tcp", addr: s.addr}
	connect := func() (clients []*client) {
		for range kept {
			c := m.dial()
			if _, err := c.ask("/pid"); err != nil {
				t.Fatal(err)
			}
			clients = append(clients, c)
		}
		return clients
	}
	ask := func(clients []*client) map[int]int {
		got := map[int]int{}
		for _, c := range clients {
			if a, err := c.ask("/pid"); err != nil {
				t.Errorf("a request was lost: %v", err)
			} else {
				got[a.pid]++
			}
		}
		return got
	}

	clients := connect()
	old := s.servingPid()
	other := proctest.Start(t, proctest.Command{Path: proctest.Build(t, "github.com/julofinance/grace/v3/integration_test/inflight"), Args: []string{"600"}, Credential: user})
	other.WaitLine(`^in flight 600`)
	s.Signal(old, syscall.SIGUSR2)
	s.WaitLine(`upgrade done; draining"`)
	new := s.successor(old)
	s.WaitLine(fmt.Sprintf(`connections can't be moved to the new process any more; .* new=%d .*%v`, new, syscall.ETOOMANYREFS))
	if got := ask(clients); got[old] != kept {
		t.Errorf("answers by pid: %v; want all by %d", got, old)
	}
	if moved, _, cut := m.drained(); moved != 0 || cut != 0 {
		t.Errorf("moved %d and cut off %d, want none", moved, cut)
	}
	s.WaitGone(old)
	if pid := s.filePid(); pid != new {
		t.Errorf("the PID file names %d, want %d", pid, new)
	}

	other.Signal(other.Pid(), syscall.SIGTERM)
	other.WaitAllGone()
	clients = connect()
	s.Signal(new, syscall.SIGUSR2)
	if moved, _, cut := m.drained(); moved != kept || cut != 0 {
		t.Errorf("moved %d and cut off %d, want %d and 0", moved, cut, kept)
	}
	s.WaitGone(new)
	if got := ask(clients); got[s.WaitAlone()] != kept {
		t.Errorf("answers by pid: %v; want all by the new process", got)
	}
}
