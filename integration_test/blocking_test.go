//go:build linux

package integration_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/julofinance/grace/v3/internal/proctest"
)

// TestBlockingSocket: a program has made its socket a blocking one, so that a goroutine
// that waits there is in a system call which no deadline reaches. It is freed at the
// upgrade, the roll back and the stop: nothing has to arrive for that.
func TestBlockingSocket(t *testing.T) {
	for _, network := range []string{"udp", "unixgram", "tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			t.Parallel()
			addr := "127.0.0.1:0"
			if strings.HasPrefix(network, "unix") {
				addr = filepath.Join(t.TempDir(), "s")
			}
			how, call := "packet", syscall.SYS_RECVFROM
			ask := func(s *server, addr string) int { pid, _ := askPacket(t, network, addr); return pid }
			if network == "tcp" || network == "unix" {
				how, call = "raw", syscall.SYS_ACCEPT4
				ask = func(s *server, addr string) int {
					pid, _, err := askRaw(network, addr)
					if err != nil {
						t.Fatal(err)
					}
					return pid
				}
			}
			// What a drain would wait for in vain it waits for without end.
			s := startServer(t, "-blocking", "-"+how, network+"="+addr, "-probation", "2s", "-drain", "1h")
			addr = s.addrOf(how, network)
			first := s.Pid()
			mustBlock := func(pid int) {
				t.Helper()
				proctest.WaitFor(t, proctest.Limit, "a thread in a system call that blocks", func() bool {
					s.mustGet("/block")
					if got := ask(s, addr); got != pid { // from the next one on it blocks
						t.Errorf("process %d answers, want %d", got, pid)
					}
					return inCall(pid, call)
				})
			}
			mustBlock(first)
			s.Signal(first, syscall.SIGUSR2)
			s.WaitLine(`standing by"`)
			s.WaitGone(first)
			second := s.WaitAlone()
			mustBlock(second)
			s.misbehave("kill-after-ready=0s")
			result := s.beginUpgrade()
			if got := s.waitResult(result); !slices.Equal(got.Is, []string{"ErrRolledBack"}) {
				t.Errorf("Upgrade returned %+v; want ErrRolledBack", got)
			}
			mustBlock(second)
			s.Signal(second, syscall.SIGTERM)
			s.WaitAllGone()
			if ws := s.WaitExit(second); ws.ExitStatus() != 0 {
				t.Errorf("the last process ended with %v, want status 0", ws)
			}
		})
	}
}

// inCall reports whether a thread of the process is in this system call.
func inCall(pid int, call int) bool {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/syscall", pid))
	for _, task := range tasks {
		if b, _ := os.ReadFile(task); strings.HasPrefix(string(b), fmt.Sprint(call, " ")) {
			return true
		}
	}
	return false
}
