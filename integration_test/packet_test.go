//go:build linux

package integration_test

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/proctest"
)

// packetClients are so many that the kernel gives some to each socket of a group
// with SO_REUSEPORT.
const packetClients = 60

func dialPackets(t *testing.T, addr string) (clients []net.Conn) {
	t.Helper()
	for range packetClients {
		c, err := net.Dial("udp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(4 * proctest.Limit))
		clients = append(clients, c)
	}
	return clients
}

func sendAll(t *testing.T, clients []net.Conn, text string) {
	t.Helper()
	for _, c := range clients {
		if _, err := fmt.Fprint(c, text); err != nil {
			t.Fatal(err)
		}
	}
}

// packetAnswer gives which process answers, and what.
func packetAnswer(t *testing.T, c net.Conn) (pid int, text string) {
	t.Helper()
	b := make([]byte, 100)
	n, err := c.Read(b)
	if err != nil {
		t.Fatalf("no answer: %v", err)
	}
	generation := 0
	if _, err := fmt.Sscan(string(b[:n]), &pid, &generation, &text); err != nil {
		t.Fatalf("the answer is %q", b[:n])
	}
	return pid, text
}

// TestMoreReusePortPackets: the new version has more packet sockets with
// SO_REUSEPORT than the old one. What the kernel gives those is read when the new
// process is ready, and lost if it dies; docs/udp.md says so. What goes to the
// socket that both have is not lost in any case.
func TestMoreReusePortPackets(t *testing.T) {
	for _, more := range []int{0, 3} {
		for _, when := range []string{"ready", "dies before it is ready", "rolled back"} {
			t.Run(fmt.Sprintf("%d more, %s", more, when), func(t *testing.T) {
				t.Parallel()
				s := startServer(t, "-reuseport", "-packet", "udp=127.0.0.1:0", "-packet2", fmt.Sprint(more), "-probation", "10m")
				clients := dialPackets(t, s.addrOf("packet", "udp"))
				old := s.Pid()
				s.misbehave("pause@check")
				result := s.beginUpgrade()
				new := atoi(t, s.WaitLine(`^paused at \S+ pid=(\d+)`)[1])
				if when == "rolled back" {
					s.Signal(new, syscall.SIGUSR1)
					s.WaitLine(`standing by"`)
					s.Halt(new)
				}
				sendAll(t, clients, "first")
				if when == "ready" {
					s.Signal(new, syscall.SIGUSR1)
					pids := map[int]int{}
					for _, c := range clients {
						pid, _ := packetAnswer(t, c)
						pids[pid]++
					}
					if more > 0 && pids[new] < packetClients/4 {
						t.Errorf("answers by pid: %v; want some by %d of before it was ready", pids, new)
					}
					s.Signal(new, syscall.SIGKILL)
					s.waitResult(result)
					return
				}
				s.Signal(new, syscall.SIGKILL)
				want := map[string]string{"rolled back": "ErrRolledBack", "dies before it is ready": "ErrExited"}[when]
				if got := s.waitResult(result); !slices.Equal(got.Is, []string{want}) {
					t.Errorf("Upgrade returned %+v, want %s", got, want)
				}
				sendAll(t, clients, "second") // each socket is read in order
				lost := 0
				for _, c := range clients {
					pid, text := packetAnswer(t, c)
					if text == "second" {
						lost++
					} else {
						pid, text = packetAnswer(t, c)
					}
					if pid != old || text != "second" {
						t.Fatalf("process %d answers %q, want %d", pid, text, old)
					}
				}
				if lost > 0 != (more > 0) {
					t.Errorf("%d packets of %d were lost", lost, packetClients)
				}
				if strings.HasPrefix(when, "rolled") && lost == packetClients {
					t.Error("none was read from the socket that both have")
				}
			})
		}
	}
}
