//go:build linux

package integration_test

import (
	"fmt"
	"net"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/proctest"
)

// TestAcceptUnderWay: the old process is in accept(2) when it hands over, and that
// takes as long as it likes. It takes one connection of those that come after, also
// when more are waiting, and no other one.
func TestAcceptUnderWay(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			t.Parallel()
			addr := "127.0.0.1:0"
			if network == "unix" {
				addr = filepath.Join(t.TempDir(), "s")
			}
			s := startServer(t, "-raw", network+"="+addr, "-probation", "10m")
			addr = s.addrOf("raw", network)
			old := s.Pid()
			s.misbehave("pause@check") // so that it is there before strace, which does not see it then
			s.Signal(old, syscall.SIGUSR2)
			new := atoi(t, s.WaitLine(`^paused at \S+ pid=(\d+)`)[1])
			strace := attachWith(t, old, []string{"-e", "trace=accept4", "-e", "inject=accept4:delay_enter=600000000", "-o", filepath.Join(t.TempDir(), "trace")})
			dial := func() net.Conn {
				t.Helper()
				c, err := net.DialTimeout(network, addr, proctest.Limit)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { c.Close() })
				c.SetDeadline(time.Now().Add(2 * proctest.Limit))
				return c
			}
			mustAnswer := func(c net.Conn, want int) {
				t.Helper()
				var pid, generation int
				if _, err := fmt.Fscan(c, &pid, &generation); err != nil || pid != want {
					t.Errorf("process %d answers, error %v; want %d", pid, err, want)
				}
			}
			first := dial() // wakes the old one's Accept
			proctest.WaitFor(t, proctest.Limit, "the old process to be in accept(2)", func() bool { return inCall(old, syscall.SYS_ACCEPT4) })
			s.Signal(new, syscall.SIGUSR1)
			s.WaitLine(`standing by"`)
			mustAnswer(first, new)
			s.Halt(new)
			var waiting []net.Conn
			for range 10 {
				waiting = append(waiting, dial())
			}
			strace.Signal(strace.Pid(), syscall.SIGTERM) // which lets the call go on
			strace.WaitAllGone()
			mustAnswer(waiting[0], old)
			s.Signal(new, syscall.SIGCONT)
			for _, c := range waiting[1:] {
				mustAnswer(c, new)
			}
			s.Signal(new, syscall.SIGTERM) // the old one as well
			s.WaitAllGone()
		})
	}
}
