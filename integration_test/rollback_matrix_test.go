//go:build linux

package integration_test

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/proctest"
)

// A cell is a listener of one kind with a server of one kind.
type cell struct {
	wrapper, server, network string
	addr                     string
	old, later               bool // of generation 1 alone; of all later ones alone

	at   string // where it listens
	held net.Conn
}

func (c *cell) name() string {
	return fmt.Sprintf("%s-%s-%s old=%v later=%v", c.wrapper, c.server, c.network, c.old, c.later)
}

// ask connects and gives the pid that answers, and the connection, which is open:
// hijacked from an http.Server, busy in another one.
func (c *cell) ask() (pid int, conn net.Conn, err error) {
	if conn, err = net.DialTimeout(c.network, c.at, proctest.Limit); err != nil {
		return 0, nil, err
	}
	defer func() {
		if err != nil {
			conn.Close()
		}
	}()
	conn.SetDeadline(time.Now().Add(proctest.Limit))
	if c.wrapper == "proxy" {
		fmt.Fprintf(conn, "PROXY UNKNOWN\r\n")
	}
	if c.wrapper == "tls" || c.server == "https" {
		conn = tls.Client(conn, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
	}
	r := bufio.NewReader(conn)
	if c.server != "server" {
		fmt.Fprintf(conn, "GET /hijack HTTP/1.1\r\nHost: test\r\n\r\n")
		for line := ""; line != "\r\n"; {
			if line, err = r.ReadString('\n'); err != nil {
				return 0, nil, err
			}
		}
	}
	_, err = fmt.Fscanln(r, &pid)
	return pid, conn, err
}

// mustAnswer asks a few times, over new connections.
func (c *cell) mustAnswer(t *testing.T, want int) {
	t.Helper()
	for range 4 {
		pid, conn, err := c.ask()
		if err != nil {
			t.Errorf("%s: %v", c.name(), err)
			return
		}
		conn.Close()
		if pid != want {
			t.Errorf("%s: process %d answers, want %d", c.name(), pid, want)
			return
		}
	}
}

// mustLive checks the connection that was there before the upgrade.
func (c *cell) mustLive(t *testing.T) {
	t.Helper()
	c.held.SetDeadline(time.Now().Add(proctest.Limit))
	fmt.Fprint(c.held, "x")
	if _, err := io.ReadFull(c.held, make([]byte, 1)); err != nil {
		t.Errorf("%s: a connection of before is gone: %v", c.name(), err)
	}
}

func matrix(dir string) (cells []*cell) {
	n := 0
	path := func() string { n++; return filepath.Join(dir, fmt.Sprint("s", n)) }
	for _, wrapper := range []string{"none", "limit", "proxy", "tls", "cmux"} {
		for _, server := range []string{"http", "https", "server"} {
			if wrapper == "tls" && server == "https" {
				continue
			}
			cells = append(cells,
				&cell{wrapper: wrapper, server: server, network: "tcp", addr: "127.0.0.1:0"},
				&cell{wrapper: wrapper, server: server, network: "tcp4", addr: "127.0.0.1:0", old: true},
				&cell{wrapper: wrapper, server: server, network: "tcp4", addr: "127.0.0.2:0", later: true},
			)
		}
	}
	for _, wrapper := range []string{"none", "limit", "cmux"} {
		for _, server := range []string{"http", "server"} {
			cells = append(cells,
				&cell{wrapper: wrapper, server: server, network: "unix", addr: path()},
				&cell{wrapper: wrapper, server: server, network: "unix", addr: path(), old: true},
				&cell{wrapper: wrapper, server: server, network: "unix", addr: path(), later: true},
			)
		}
	}
	return cells
}

// TestRollBackMatrix: whenever the new process dies, and whatever listens and serves,
// the old one serves on everything that it had, the connections of before live, and the
// next upgrade succeeds.
func TestRollBackMatrix(t *testing.T) {
	strace, _ := exec.LookPath("strace")
	for _, moment := range []struct {
		name      string
		misbehave string
		probation string
		is        string
	}{
		{"before ready", "pause@listen", "1m", "ErrExited"},
		{"after go", "", "1m", "ErrExited"},
		{"in probation", "kill-after-ready=50ms", "1m", "ErrRolledBack"},
		{"it gives up", "close-after-ready=50ms", "1m", "ErrRolledBack"},
		{"in the drain", "", "0s", ""},
	} {
		for _, reuse := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, reuseport %v", moment.name, reuse), func(t *testing.T) {
				if moment.name == "after go" {
					lookPath(t, "strace")
				}
				t.Parallel()
				dir := t.TempDir()
				// strace of what comes after go: the PID file is switched.
				script, flag := filepath.Join(dir, "run"), filepath.Join(dir, "kill")
				if err := proctest.WriteProgram(script, fmt.Appendf(nil, "#!/bin/sh\n[ -e %s ] || exec %s \"$@\"\nrm %[1]s\nexec %s -D -f -qq -o /dev/null -e trace=/^rename -e inject=/^rename:signal=KILL %[2]s \"$@\"\n",
					flag, proctest.Build(t, serverPackage), strace), 0o755); err != nil {
					t.Fatal(err)
				}
				args := []string{"-probation", moment.probation, "-exec", script}
				if reuse {
					args = append(args, "-reuseport")
				}
				cells := matrix(dir)
				for _, c := range cells {
					flag := map[[2]bool]string{{}: "-serve", {true}: "-serve1", {false, true}: "-serve2"}[[2]bool{c.old, c.later}]
					args = append(args, flag, c.wrapper+","+c.server+","+c.network+"="+c.addr)
				}
				s := startServer(t, args...)
				old := s.Pid()
				var mine []*cell
				for _, c := range cells {
					if c.later {
						continue
					}
					mine = append(mine, c)
					c.at = s.WaitLine(`^listening ` + c.wrapper + `-` + c.server + ` ` + c.network + ` (\S+) pid=`)[1]
					if c.network == "unix" { // several print alike but for that
						c.at = c.addr
					}
				}
				for _, c := range mine {
					pid, conn, err := c.ask()
					if err != nil || pid != old {
						t.Fatalf("%s: process %d, error %v", c.name(), pid, err)
					}
					defer conn.Close()
					c.held = conn
				}
				if moment.misbehave != "" {
					s.misbehave(moment.misbehave)
				}
				switch moment.name {
				case "in the drain":
					s.Signal(old, syscall.SIGUSR2)
					s.WaitLine(`upgrade done; draining`)
					// All that the old process accepted and dropped is gone, so its
					// drain is as far as it gets: what is held keeps it from ending.
					for _, c := range mine {
						if c.old {
							proctest.WaitFor(t, proctest.Limit, "the end of "+c.name(), func() bool {
								conn, err := net.Dial(c.network, c.at)
								if err == nil {
									conn.Close()
								}
								return err != nil
							})
						}
					}
					s.Signal(s.filePid(), syscall.SIGKILL)
					s.WaitLine(`msg="grace: rolled back`)
				case "before ready":
					result := s.beginUpgrade()
					new := atoi(t, s.WaitLine(`^paused at listen pid=(\d+)`)[1])
					for _, c := range mine {
						c.mustAnswer(t, old) // what the new process has opened, too, takes nothing
					}
					s.Signal(new, syscall.SIGKILL)
					s.waitResult(result)
				default:
					if moment.name == "after go" {
						if err := os.WriteFile(flag, nil, 0o644); err != nil {
							t.Fatal(err)
						}
					}
					got := s.upgrade()
					if len(got.Is) != 1 || got.Is[0] != moment.is {
						t.Fatalf("Upgrade returned %+v, want %s", got, moment.is)
					}
					// A new process that gives up tells so, and stops accepting then:
					// until that is done both may accept.
					s.WaitGone(got.Pid)
				}
				for _, c := range mine {
					if c.old || c.network == "unix" {
						proctest.WaitFor(t, proctest.Limit, c.name(), func() bool {
							conn, err := net.Dial(c.network, c.at)
							if err == nil {
								conn.Close()
							}
							return err == nil
						})
					}
					c.mustAnswer(t, old)
					c.mustLive(t)
					c.held.Close()
				}
				if t.Failed() {
					return
				}
				finishUpgrade(s)
				for _, c := range mine {
					if !c.old {
						c.mustAnswer(t, s.filePid())
					}
				}
				if n := s.Count(`can't be opened again`); n > 0 && !strings.Contains(moment.name, "gives up") {
					t.Errorf("%d listeners could not be opened again at once", n)
				}
			})
		}
	}
}
