//go:build linux

package integration_test

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	httpload "github.com/julofinance/grace/v3/internal/load"
	"github.com/julofinance/grace/v3/internal/proctest"
)

// A rawConn is one connection on which a test asks and reads by itself.
type rawConn struct {
	net.Conn
	t  testing.TB
	in *bufio.Reader
}

func dialRaw(t testing.TB, network, addr string) *rawConn {
	t.Helper()
	c, err := net.DialTimeout(network, addr, proctest.Limit)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(2 * proctest.Limit))
	return &rawConn{Conn: c, t: t, in: bufio.NewReader(c)}
}

// over speaks TLS over c from now on.
func (c *rawConn) over(config *tls.Config) {
	c.Conn = tls.Client(c.Conn, config)
	c.in = bufio.NewReader(c.Conn)
}

func (c *rawConn) send(text string) {
	c.t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		c.t.Fatal(err)
	}
}

// get asks for a path and gives the answer.
func (c *rawConn) get(path string) (*http.Response, string) {
	c.t.Helper()
	c.send("GET " + path + " HTTP/1.1\r\nHost: test\r\n\r\n")
	return c.answer()
}

func (c *rawConn) answer() (*http.Response, string) {
	c.t.Helper()
	resp, err := http.ReadResponse(c.in, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	return resp, strings.TrimSpace(string(b))
}

// upgradeConn makes it a stream that echoes lines.
func (c *rawConn) upgradeConn() {
	c.t.Helper()
	c.send("GET /stream HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
	if resp, err := http.ReadResponse(c.in, nil); err != nil || resp.StatusCode != 101 {
		c.t.Fatalf("GET /stream: %v, error %v", resp, err)
	}
	c.echo("hello")
}

func (c *rawConn) echo(line string) {
	c.t.Helper()
	c.send(line + "\n")
	if got, err := c.in.ReadString('\n'); err != nil || got != line+"\n" {
		c.t.Fatalf("the stream answered %q, error %v; want %q", got, err, line)
	}
}

// TestExitsWhenNothingIsLeft: the old process ends with the last thing that it
// has, not with the next tick of a clock. A drain that polls, as Shutdown does
// each 500 ms, would be late by half of that in the mean.
func TestExitsWhenNothingIsLeft(t *testing.T) {
	ends := map[string]func(t *testing.T, s *loadServer) (end func()){
		"a request": func(t *testing.T, s *loadServer) func() {
			c := dialRaw(t, "tcp", s.addr["limited"]) // not movable
			c.get("/sized?n=1")                       // it is the old process's for sure
			c.send("POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\n\r\n1")
			return func() {
				c.send("2")
				if _, got := c.answer(); got != "12" {
					t.Errorf("got %q, want 12", got)
				}
				c.Close() // else it would be idle for a while
			}
		},
		"a request on a connection that moves": func(t *testing.T, s *loadServer) func() {
			c := dialRaw(t, "tcp", s.addr["plain"])
			c.get("/sized?n=1")
			c.send("POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\n\r\n1")
			return func() {
				c.send("2")
				if _, got := c.answer(); got != "12" {
					t.Errorf("got %q, want 12", got)
				}
			}
		},
		"a stream": func(t *testing.T, s *loadServer) func() {
			c := dialRaw(t, "tcp", s.addr["plain"])
			c.upgradeConn()
			return func() {
				c.Conn.(*net.TCPConn).CloseWrite()
				if got, err := io.ReadAll(c.in); err != nil || string(got) != "end 1\n" {
					t.Errorf("the stream ended with %q, error %v", got, err)
				}
			}
		},
	}
	for name, begin := range ends {
		t.Run(name, func(t *testing.T) {
			s := startLoadServer(t, "plain", "limited")
			// usual is what the machine takes at that moment for a connection to the new
			// process and one request.
			tries := func(n int) (median, usual time.Duration) {
				var took, asked []time.Duration
				for range n {
					end := begin(t, s)
					old, _ := s.beginUpgrade()
					s.WaitLine(fmt.Sprintf(`upgrade done; draining" from=%d`, old))
					begun := time.Now()
					c := dialRaw(t, "tcp", s.addr["plain"])
					c.get("/sized?n=1")
					c.Close()
					asked = append(asked, time.Since(begun))
					end()
					since := time.Now()
					// Not when the test sees its end: that takes longer where much runs.
					line := s.WaitLine(fmt.Sprintf(`^time=(\S+) .*msg="grace: stopped" from=%d`, old))
					at, err := time.Parse(time.RFC3339Nano, line[1])
					if err != nil {
						t.Fatal(err)
					}
					took = append(took, at.Sub(since))
					s.WaitGone(old)
				}
				slices.Sort(took)
				slices.Sort(asked)
				t.Logf("from the last byte to the last line: %v; for a request: %v", took, asked)
				return took[len(took)/2], asked[len(asked)/2]
			}
			// Such a poll is below 100 ms in one of five tries. On a machine that is busy
			// everything takes longer, a request too; and it gets another chance.
			const limit = 100 * time.Millisecond
			for late := 1; ; late++ {
				median, usual := tries(11)
				if median <= max(limit, 5*usual) {
					break
				}
				if late == 3 {
					t.Fatalf("three times in a row, half of the old processes were through more than %v after the end of what they had, where a request took %v", limit, usual)
				}
			}
		})
	}
}

// TestDrainTimeoutCutsOff: what is left when the time is up is cut off, counted
// and logged, and only that.
func TestDrainTimeoutCutsOff(t *testing.T) {
	s := startLoadServer(t, "plain", "limited", "--", "-drain", "2s")
	idle := dialRaw(t, "tcp", s.addr["plain"])
	idle.get("/sized?n=1")
	stream := dialRaw(t, "tcp", s.addr["plain"])
	stream.upgradeConn()
	var halves []*rawConn
	for _, way := range []string{"plain", "limited"} {
		c := dialRaw(t, "tcp", s.addr[way])
		c.get("/sized?n=1") // it is the old process's for sure
		c.send("POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\n\r\n1")
		halves = append(halves, c)
	}
	old, next := s.beginUpgrade()
	m := s.WaitLine(fmt.Sprintf(`level=WARN msg="grace: drained; .*from=%d .*moved=(\d+) .*cut=(\d+)`, old))
	if m[1] != "1" || m[2] != "3" {
		t.Errorf("the log says %q; want 1 moved and 3 cut off", m[0])
	}
	s.WaitGone(old)
	for i, c := range append(halves, stream) {
		if b, err := io.ReadAll(c.in); err == nil && len(b) > 0 {
			t.Errorf("connection %d ended with %q; want it cut off", i, b)
		}
	}
	if resp, _ := idle.get("/sized?n=1"); resp.Header.Get("X-Pid") != fmt.Sprint(next) {
		t.Errorf("the idle connection was answered by %s, want %d", resp.Header.Get("X-Pid"), next)
	}
}

// TestHooks: ConnState, ConnContext, BaseContext and what was registered with
// RegisterOnShutdown are called as net/http calls them, in both processes.
func TestHooks(t *testing.T) {
	s := startLoadServerEnv(t, []string{"LOADSERVER_STATES=1"}, "plain", "tls", "h2c", "unix", "limited")
	one := s.filePid()
	conns := map[string]*rawConn{}
	for _, way := range []string{"plain", "limited", "h2c", "unix", "tls"} {
		var c *rawConn
		switch way {
		case "unix":
			c = dialRaw(t, "unix", s.addr[way])
		case "tls":
			c = dialRaw(t, "tcp", s.addr[way])
			c.over(s.tlsConfig())
		default:
			c = dialRaw(t, "tcp", s.addr[way])
		}
		conns[way] = c
		c.wantHooks(one, s.addr[way], "new,active")
		c.wantHooks(one, s.addr[way], "new,active,idle,active")
	}
	stream := dialRaw(t, "tcp", s.addr["plain"])
	stream.upgradeConn()

	old, two := s.beginUpgrade()
	s.WaitLine(fmt.Sprintf(`upgrade done; draining" from=%d`, old))
	// Moved ones end here, begin anew there, and the others end as they would.
	for _, way := range []string{"plain", "unix", "h2c"} {
		name, remote := "one", regexp.QuoteMeta(conns[way].remote())
		if way == "h2c" {
			name = way
		}
		s.WaitLine(fmt.Sprintf(`^conn %s pid=%d %s new,active,idle,active,idle,closed$`, name, one, remote))
		conns[way].wantHooks(two, s.addr[way], "new,active")
	}
	for way, name := range map[string]string{"limited": "one", "tls": "tls"} {
		c := conns[way]
		if resp, _ := c.get("/hooks"); !resp.Close {
			t.Errorf("the connection that can't move (%s) was not told to close", way)
		}
		s.WaitLine(fmt.Sprintf(`^conn %s pid=%d %s new,active,idle,active,idle,active,closed$`, name, one, regexp.QuoteMeta(c.remote())))
	}
	s.WaitLine(fmt.Sprintf(`^conn one pid=%d \S+ new,active,hijacked$`, one))
	// Only the stream is left, and its owner is told.
	s.WaitLine(fmt.Sprintf(`^shutdown one pid=%d$`, one))
	stream.echo("still there")
	stream.Close()
	s.WaitGone(one)
	// As in net/http, no goroutine waits for it: with nothing left to wait for, the
	// process may be gone before it has printed the line.
	for name, least := range map[string]int{"one": 1, "tls": 0, "h2c": 0} {
		if n := s.Count(fmt.Sprintf(`^shutdown %s pid=%d$`, name, one)); n < least || n > 1 {
			t.Errorf("what was registered with RegisterOnShutdown of server %s was called %d times", name, n)
		}
	}
}

// remote is what the server calls it.
func (c *rawConn) remote() string {
	if c.LocalAddr().Network() == "unix" {
		return "@"
	}
	return c.LocalAddr().String()
}

// wantHooks asks what the hooks have seen of this connection.
func (c *rawConn) wantHooks(pid int, listener, states string) {
	c.t.Helper()
	want := fmt.Sprintf("pid=%d base=%s conn=%s states=%s", pid, listener, c.remote(), states)
	if _, got := c.get("/hooks"); got != want {
		c.t.Errorf("got  %q\nwant %q", got, want)
	}
}

// TestManyServersAtOnce: all servers and listeners of a process drain together,
// each in its own way.
func TestManyServersAtOnce(t *testing.T) {
	s := startLoadServer(t, "plain", "tls", "h2c", "unix", "limited")
	some := kinds(1, httpload.KeepAlive, httpload.Connect, httpload.Pipelined, httpload.Head)
	runs := map[string]*httpload.Run{}
	for _, way := range []string{"plain", "tls", "h2c", "unix", "limited"} {
		cfg := httpload.Config{Addr: s.addr[way], Kinds: some}
		switch way {
		case "unix":
			cfg.Network = "unix"
		case "tls":
			cfg.TLS = s.tlsConfig()
		}
		runs[way] = startHTTPLoad(t, cfg)
		waitAnswers(t, runs[way], 1)
	}
	h2 := startHTTP2Load(t, s, "h2c")
	n := rounds(10)
	for range n {
		h2.waitAnswers(1)
		s.upgrade()
	}
	h2.waitAnswers(1)
	h2.mustLoseNone(n)
	for way, run := range runs {
		waitAnswers(t, run, 1)
		moves := way == "plain" || way == "unix" || way == "h2c" // HTTP/1 on h2c
		if mustLoseNone(t, run, n, moves); t.Failed() {
			t.Logf("that was %s", way)
		}
	}
	mustCutNone(t, s)
}
