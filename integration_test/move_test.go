//go:build linux

package integration_test

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/proctest"
	"github.com/julofinance/grace/v3/internal/testing/tlstest"
)

// A mover is a running moveserver.
type mover struct {
	*proctest.Process
	t             testing.TB
	network, addr string
}

const moveServerPackage = "github.com/julofinance/grace/v3/integration_test/moveserver"

func startMover(t testing.TB, args ...string) *mover {
	t.Helper()
	return startMoverAs(t, proctest.Command{Path: proctest.Build(t, moveServerPackage), Args: args})
}

func startMoverAs(t testing.TB, c proctest.Command) *mover {
	t.Helper()
	m := &mover{Process: proctest.Start(t, c), t: t, network: "tcp"}
	m.addr = m.WaitLine(`^listening 1 (\S+)`)[1]
	if strings.HasPrefix(m.addr, "/") {
		m.network = "unix"
	}
	m.WaitLine(`msg="grace: serving"`)
	return m
}

// upgrade begins one, and gives the new pid once it serves.
func (m *mover) upgrade() int { return m.upgradeOf(m.Pid()) }

// upgradeOf is upgrade of the generation with this pid.
func (m *mover) upgradeOf(pid int) int {
	m.t.Helper()
	m.Signal(pid, syscall.SIGUSR2)
	next, _ := strconv.Atoi(m.WaitLine(`msg="grace: serving" from=\d+ pid=(\d+)`)[1])
	return next
}

// drained waits for the report of the old process's drain.
func (m *mover) drained() (moved, finished, cut int) {
	m.t.Helper()
	r := m.WaitLine(`msg="grace: drained.* moved=(\d+) finished=(\d+) waited=\d+ cut=(\d+)`)
	moved, _ = strconv.Atoi(r[1])
	finished, _ = strconv.Atoi(r[2])
	cut, _ = strconv.Atoi(r[3])
	return moved, finished, cut
}

// A client is one connection, whose bytes are never sent twice.
type client struct {
	net.Conn
	r    *bufio.Reader
	t    testing.TB
	last answer
}

func (m *mover) dial() *client { return m.dialFrom("") }

// mustReach dials until the process pid answers. An Accept of the old process that was
// under way when it handed over may take one connection more.
func (m *mover) mustReach(pid int) {
	m.t.Helper()
	c := m.dial()
	if a, err := c.ask("/"); err == nil && a.pid != pid {
		c.Close()
		c = m.dial()
	}
	c.mustAsk(m.t, pid)
}

func (m *mover) dialFrom(ip string) *client {
	m.t.Helper()
	d := net.Dialer{Timeout: proctest.Limit}
	if ip != "" {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(ip)}
	}
	c, err := d.Dial(m.network, m.addr)
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { c.Close() })
	return &client{Conn: c, r: bufio.NewReaderSize(c, 512), t: m.t}
}

// An answer is that of a moveserver.
type answer struct {
	pid           int
	remote, local string
	counted       int
	closes        bool // Connection: close
}

func (c *client) ask(path string) (a answer, err error) {
	c.SetDeadline(time.Now().Add(2 * proctest.Limit))
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: grace\r\n\r\n", path); err != nil {
		return a, err
	}
	return c.read()
}

func (c *client) read() (a answer, err error) {
	c.SetDeadline(time.Now().Add(2 * proctest.Limit))
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil {
		fmt.Sscan(string(b), &a.pid, &a.remote, &a.local, &a.counted)
	}
	a.closes = resp.Close
	c.last = a
	return a, err
}

func (c *client) mustAsk(t testing.TB, pid int) answer {
	t.Helper()
	a, err := c.ask("/")
	if err != nil {
		t.Fatalf("a request on %v: %v", c.LocalAddr(), err)
	}
	if a.pid != pid {
		t.Fatalf("a request on %v was answered by %d, want %d", c.LocalAddr(), a.pid, pid)
	}
	return a
}

// What may move and what must stay.
func TestWhichConnectionsMove(t *testing.T) {
	for _, c := range []struct {
		name, in1, in2 string
		moves          bool
	}{
		{"plain", "", "", true},
		{"wrapped in new", "", "wrap", true},
		{"wrapped in old", "wrap", "", false},
		{"not listened on in new", "", "without", false},
		{"TLS in new", "", "tls", false},
		{"TLS hidden by a wrapper in new", "", "hiddentls", false},
		{"MoveConns(false) in old", "nomove", "", false},
		{"MoveConns(false) in old, and new says late what it takes", "nomove", "wrap", false},
		{"MoveConns(false) in new", "", "nomove", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m := startMover(t, "-in1", c.in1, "-in2", c.in2, "-cert", tlstest.File(t), "-probation", "300ms", "-idlegrace", "5s")
			idle, asks := m.dial(), m.dial()
			first := idle.mustAsk(t, m.Pid())
			asks.mustAsk(t, m.Pid())
			pid := m.upgrade()
			if strings.Contains(c.in2, "wrap") {
				// What comes through a wrapper that the library does not know is known
				// to the new process when something has come.
				m.WaitLine(map[bool]string{true: `standing by`, false: `msg="grace: upgrade done`}[c.moves])
				m.mustReach(pid)
			}
			if c.in2 == "hiddentls" { // what a wrapper speaks is not known by a connection
				m.WaitLine(`standing by`)
				for tries := 0; ; tries++ { // the first one may still be the old process's, see mustReach
					over := m.dial()
					over.Conn = tls.Client(over.Conn, &tls.Config{InsecureSkipVerify: true})
					over.r = bufio.NewReader(over.Conn)
					if a, err := over.ask("/"); err == nil && a.pid == pid {
						break
					} else if tries == 1 {
						t.Fatalf("over TLS: answer of %d, error %v; want one of %d", a.pid, err, pid)
					}
				}
			}
			if c.moves {
				moved, _, cut := m.drained()
				if moved != 2 || cut != 0 {
					t.Errorf("moved %d and cut off %d connections, want 2 and 0", moved, cut)
				}
				asks.mustAsk(t, pid) // both have come through the listener then
				a := idle.mustAsk(t, pid)
				if a.remote != idle.LocalAddr().String() || a.local != idle.RemoteAddr().String() {
					t.Errorf("the new process says that the client is %s and itself %s, want %v and %v", a.remote, a.local, idle.LocalAddr(), idle.RemoteAddr())
				}
				if a.remote != first.remote || a.local != first.local {
					t.Errorf("the new process says %s and %s, the old one said %s and %s", a.remote, a.local, first.remote, first.local)
				}
				if want := map[bool]int{true: 3}[c.in2 == "wrap"]; a.counted != want {
					t.Errorf("the listener's wrapper has counted %d connections, want %d", a.counted, want)
				}
				return
			}
			if c.in2 != "wrap" {
				m.WaitLine(`msg="grace: upgrade done`)
			}
			for tries := 0; ; tries++ { // it may be asked before the drain has begun
				if a := asks.mustAsk(t, m.Pid()); a.closes {
					break
				}
			}
			if _, err := asks.r.ReadByte(); err != io.EOF {
				t.Errorf("after Connection: close: got %v, want %v", err, io.EOF)
			}
			if _, err := idle.r.ReadByte(); err != io.EOF {
				t.Errorf("after the idle grace: got %v, want %v", err, io.EOF)
			}
			if moved, _, cut := m.drained(); moved != 0 || cut != 0 {
				t.Errorf("moved %d and cut off %d connections, want none", moved, cut)
			}
		})
	}
}

func TestMoveOverUnixSocket(t *testing.T) {
	dir, err := os.MkdirTemp("", "m")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	m := startMover(t, "-listen", "unix="+dir+"/s")
	clients := make([]*client, 50)
	for i := range clients {
		clients[i] = m.dial()
		clients[i].mustAsk(t, m.Pid())
	}
	pid := m.upgrade()
	if moved, _, cut := m.drained(); moved != len(clients) || cut != 0 {
		t.Errorf("moved %d and cut off %d connections, want %d and 0", moved, cut, len(clients))
	}
	for _, c := range clients {
		c.mustAsk(t, pid)
	}
}

func TestHooksOfMovedConnection(t *testing.T) {
	m := startMover(t, "-in1", "log", "-in2", "log")
	// A request holds the old process until its hook was told of the end: like
	// http.Server.Shutdown, a drain does not wait for StateClosed.
	busy := m.dial()
	busy.mustAsk(t, m.Pid())
	fmt.Fprintf(busy, "POST /hold HTTP/1.1\r\nHost: grace\r\nContent-Length: 1\r\n\r\n")
	c := m.dial()
	c.mustAsk(t, m.Pid())
	pid := m.upgrade()
	m.WaitLine(fmt.Sprintf(`^state closed %s pid=%d`, c.LocalAddr(), m.Pid()))
	fmt.Fprint(busy, "a")
	m.drained()
	c.mustAsk(t, pid)
	c.Close()
	m.WaitLine(fmt.Sprintf(`^state closed %s pid=%d`, c.LocalAddr(), pid))
	// The old process may print "closed" after the new one has printed "new": the
	// connection has moved by then.
	for _, of := range []int{m.Pid(), pid} {
		var got []string
		for _, l := range m.Lines() {
			if state, ok := strings.CutPrefix(l, "state "); ok && strings.HasSuffix(l, fmt.Sprintf("%s pid=%d", c.LocalAddr(), of)) {
				got = append(got, strings.Fields(state)[0])
			}
		}
		if s, want := strings.Join(got, ", "), "new, active, idle, closed"; s != want {
			t.Errorf("ConnState of process %d was told %s; want %s", of, s, want)
		}
	}
}

func TestMovedConnectionKeepsSocketOptions(t *testing.T) {
	for _, off := range []bool{true, false} {
		m := startMover(t, "-in1", map[bool]string{true: "sockopts"}[off])
		c := m.dial()
		c.mustAsk(t, m.Pid())
		before := socketOptions(t, m.Pid(), c.LocalAddr())
		pid := m.upgrade()
		m.drained()
		c.mustAsk(t, pid)
		m.WaitGone(m.Pid())
		if after := socketOptions(t, pid, c.LocalAddr()); after != before {
			t.Errorf("options are %s in the new process, and were %s in the old one", after, before)
		}
		if strings.HasPrefix(before, "nodelay=0 keepalive=0") != off {
			t.Errorf("options in the old process are %s; off: %v", before, off)
		}
	}
}

func TestHalfClosedClients(t *testing.T) {
	m := startMover(t)
	// One has sent all that it will send, and waits for an answer.
	busy := m.dial()
	busy.mustAsk(t, m.Pid()) // it is the old process's for sure
	fmt.Fprintf(busy, "POST /hold HTTP/1.1\r\nHost: grace\r\nContent-Length: 3\r\n\r\nab")
	idle := m.dial()
	idle.mustAsk(t, m.Pid())
	pid := m.upgrade()
	idle.CloseWrite(t)
	m.WaitLine(`msg="grace: upgrade done`)
	fmt.Fprint(busy, "c")
	busy.CloseWrite(t)
	if a, err := busy.read(); err != nil || a.pid != m.Pid() {
		t.Errorf("the client that half-closed: got an answer of %d and %v, want %d", a.pid, err, m.Pid())
	}
	for _, c := range []*client{busy, idle} {
		if _, err := c.r.ReadByte(); err != io.EOF {
			t.Errorf("after half a close and the answer: got %v, want %v", err, io.EOF)
		}
	}
	if _, _, cut := m.drained(); cut != 0 {
		t.Errorf("cut off %d connections", cut)
	}
	m.dial().mustAsk(t, pid)
}

func (c *client) CloseWrite(t testing.TB) {
	t.Helper()
	if err := c.Conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
}
