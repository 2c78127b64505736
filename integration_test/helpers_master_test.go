//go:build linux

package integration_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	httpload "github.com/julofinance/grace/v3/internal/load"
	"github.com/julofinance/grace/v3/internal/proctest"
)

// upgrades is how many the tests with masters and supervisors run under load.
const upgrades = 20

// A mastered server is one whose sockets another program owns.
type mastered struct {
	*server
	network string
	pids    []int // of all that have served, in order
}

// startServerWakes lets start_server look for signals each second. Its wait for
// children sleeps through one that comes right before.
var startServerWakes = []string{"ENABLE_AUTO_RESTART=1", "AUTO_RESTART_INTERVAL=100000", "KILL_OLD_DELAY=0"}

// startUnder starts a master that starts the test server; build gives its
// command for a server with the given arguments. The address that the server is
// told is one that it can't listen on.
func startUnder(t *testing.T, network string, build func(serverArgs []string) proctest.Command) *mastered {
	t.Helper()
	dir := t.TempDir()
	s := &server{t: t, pidFile: filepath.Join(dir, "app.pid"), misFile: filepath.Join(dir, "misbehave")}
	m := &mastered{server: s, network: network}
	args := []string{"-http", "tcp=192.0.2.1:9", "-pidfile", s.pidFile, "-misbehave", s.misFile}
	c := build(args)
	c.Env = append(c.Env, startServerWakes...)
	s.Process = proctest.Start(t, c)
	t.Cleanup(func() {
		if t.Failed() {
			s.Kill()
		}
	})
	s.addr = s.WaitLine(`listening http \w+ (\S+)`)[1]
	s.WaitLine(`msg="grace: serving"`)
	s.transport = &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, s.addr)
	}}
	s.client = &http.Client{Transport: s.transport, Timeout: 2 * proctest.Limit}
	m.pids = []int{s.filePid()}
	m.adopt()
	if got := m.servingPid(); got != m.pids[0] {
		t.Fatalf("process %d serves, and the PID file names %d", got, m.pids[0])
	}
	return m
}

func (m *mastered) pid() int { return m.pids[len(m.pids)-1] }

// get asks for a path over a new connection.
func (m *mastered) get(path string) (string, error) {
	resp, err := m.client.Get("http://server" + path)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return strings.TrimSpace(string(b)), err
}

func (m *mastered) servingPid() int {
	m.t.Helper()
	got, err := m.get("/pid")
	if err != nil {
		m.t.Fatal(err)
	}
	return atoi(m.t, got)
}

// waitNext waits until the PID file names a new process and the old one is gone.
func (m *mastered) waitNext() {
	m.t.Helper()
	m.waitNewest()
	m.WaitGone(m.pids[len(m.pids)-2])
	if got := m.filePid(); got != m.pid() {
		m.t.Fatalf("the PID file names %d once the old process is gone; want %d", got, m.pid())
	}
}

// waitNewest waits until the PID file names a new process. A sibling that the
// master has forgotten may have its name there for a moment.
func (m *mastered) waitNewest() {
	m.t.Helper()
	now := 0
	proctest.WaitFor(m.t, proctest.Limit, "a new pid in the PID file", func() bool {
		// A master that does not wait may let the old one end, and remove the
		// file, before the new one is ready.
		b, _ := os.ReadFile(m.pidFile)
		now, _ = strconv.Atoi(strings.TrimSpace(string(b)))
		return now != 0 && !slices.Contains(m.pids, now)
	})
	m.pids = append(m.pids, now)
	m.adopt()
}

// adopt takes the group of the newest process, which a supervisor may have made.
func (m *mastered) adopt() {
	if s, ok := proctest.ReadStat(m.pid()); ok {
		m.Adopt(s.Group)
	}
}

// upgrade does what an operator does.
func (m *mastered) upgrade() {
	m.t.Helper()
	m.Signal(m.filePid(), syscall.SIGUSR2)
	m.waitNext()
}

// underLoad runs f while clients open connections and others keep theirs, and
// fails the test if one of their requests is lost, or answered by a stranger.
func (m *mastered) underLoad(f func()) {
	m.t.Helper()
	l := startLoadOn(m.t, m.network, m.addr, 2, 4)
	f()
	l.mustLoseNothing(m.t)
	for pid, n := range l.pids {
		if !slices.Contains(m.pids, pid) {
			m.t.Errorf("%d requests were answered by process %d, which is none of %v", n, pid, m.pids)
		}
	}
}

// mustLogAll checks that the first and the last line of every process that has
// ended are in the captured log.
func (m *mastered) mustLogAll(lines []string) {
	m.t.Helper()
	for _, pid := range m.pids {
		for _, msg := range []string{"grace: serving", "grace: stopped"} {
			re := regexp.MustCompile(fmt.Sprintf(`msg="%s".* from=%d |msg="%s" from=%d `, msg, pid, msg, pid))
			if n := len(slices.DeleteFunc(slices.Clone(lines), func(l string) bool { return !re.MatchString(l) })); n != 1 {
				m.t.Errorf("the log has %d lines %q of process %d; want 1", n, msg, pid)
			}
		}
	}
}

// stop ends the master, unless sig is 0, and waits until nothing is left.
func (m *mastered) stop(sig syscall.Signal) {
	m.t.Helper()
	if sig != 0 {
		m.Signal(m.Pid(), sig)
	}
	m.WaitAllGone()
	if _, err := os.Stat(m.pidFile); !os.IsNotExist(err) {
		m.t.Errorf("the PID file is left: %v", err)
	}
}

// script writes a shell script that runs the server.
func script(t *testing.T, format string, args ...any) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "run")
	if err := proctest.WriteProgram(path, fmt.Appendf(nil, "#!/bin/sh\n"+format+"\n", args...), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// startLoadOn is a load of clients that open a connection for each request, and of
// others that keep theirs as long as the server does: half of them send one request
// after the other, and half are idle for a while after each, behind a network that
// takes its time. A server that closes an idle connection loses what one of these has
// sent.
func startLoadOn(t testing.TB, network, addr string, opening, keeping int) *load {
	t.Helper()
	relay, err := httpload.NewRelay(network, addr, 2*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(relay.Close)
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{cancel: cancel, done: make(chan struct{}), pids: map[int]int{}}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i := range opening + keeping {
		wg.Go(func() {
			c := &keptConn{network: network, addr: addr, keep: i >= opening}
			idles := c.keep && i%2 == 0
			if idles {
				c.network, c.addr = "tcp", relay.Addr()
			}
			defer c.close()
			for ctx.Err() == nil {
				if idles {
					select {
					case <-time.After(rand.N(20 * time.Millisecond)):
					case <-ctx.Done():
						return
					}
				}
				pid, err := c.ask()
				mu.Lock()
				if err != nil {
					l.failed = append(l.failed, err)
				} else {
					l.pids[pid]++
				}
				mu.Unlock()
			}
		})
	}
	go func() { wg.Wait(); close(l.done) }()
	return l
}

// A keptConn sends requests that may not be sent twice: none is tried again.
type keptConn struct {
	network, addr string
	keep          bool
	conn          net.Conn
	r             *bufio.Reader
}

func (c *keptConn) close() {
	if c.conn != nil {
		c.conn.Close()
		c.conn = nil
	}
}

func (c *keptConn) ask() (pid int, err error) {
	if c.conn == nil {
		if c.conn, err = net.DialTimeout(c.network, c.addr, proctest.Limit); err != nil {
			return 0, err
		}
		c.r = bufio.NewReader(c.conn)
	}
	c.conn.SetDeadline(time.Now().Add(proctest.Limit))
	end := "\r\n"
	if !c.keep {
		end = "Connection: close\r\n\r\n"
	}
	if _, err = fmt.Fprintf(c.conn, "POST /slow?ms=3 HTTP/1.1\r\nHost: server\r\nContent-Length: 0\r\n%s", end); err == nil {
		var resp *http.Response
		if resp, err = http.ReadResponse(c.r, nil); err == nil {
			_, err = fmt.Fscan(resp.Body, &pid)
			io.Copy(io.Discard, resp.Body)
			if resp.Close {
				c.close()
			}
		}
	}
	if err != nil {
		c.close()
	}
	return pid, err
}

// freeAddr is an address that was free a moment ago, for programs that can't say which
// port they got. It is none of those that the kernel gives to a program that asks for
// any; see ip(7), ip_local_port_range.
func freeAddr(t testing.TB) string {
	t.Helper()
	for range 1000 {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 10000+rand.IntN(20000)))
		if err == nil {
			defer l.Close()
			return l.Addr().String()
		}
	}
	t.Fatal("no port is free between 10000 and 30000")
	return ""
}

func inCI() bool { return os.Getenv("CI") == "true" }
