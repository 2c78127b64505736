//go:build linux

package integration_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/proctest"
)

const serverPackage = "github.com/julofinance/grace/v3/integration_test/server"

// A server is a running test server, in whatever generation.
type server struct {
	*proctest.Process
	t         testing.TB
	addr      string // of its first HTTP listener
	pidFile   string
	misFile   string // see misbehave
	client    *http.Client
	transport *http.Transport
}

// An upgradeResult is what the server's /upgrade answers with.
type upgradeResult struct {
	Err     string
	Is      []string
	Upgrade bool
	Pid     int
	Status  string
}

// startServer starts the test server with one HTTP listener and a PID file, and
// waits until it serves.
func startServer(t testing.TB, args ...string) *server {
	t.Helper()
	return startServerAs(t, proctest.Command{Path: proctest.Build(t, serverPackage), Args: args})
}

// ownArgs stands among a command's arguments where the server's own are to be, if
// they are not the first ones: a wrapper's are.
const ownArgs = "SERVER-ARGUMENTS"

func startServerAs(t testing.TB, c proctest.Command) *server {
	t.Helper()
	dir := t.TempDir()
	if c.Credential != nil {
		for d := dir; strings.HasPrefix(d, os.TempDir()+"/"); d = filepath.Dir(d) {
			os.Chmod(d, 0o755)
		}
		if err := os.Chown(dir, int(c.Credential.Uid), int(c.Credential.Gid)); err != nil {
			t.Fatal(err)
		}
	}
	s := &server{t: t, pidFile: filepath.Join(dir, "app.pid"), misFile: filepath.Join(dir, "misbehave")}
	own := []string{"-http", "tcp=127.0.0.1:0", "-pidfile", s.pidFile, "-misbehave", s.misFile}
	at := max(0, slices.Index(c.Args, ownArgs))
	c.Args = slices.Concat(c.Args[:at], own, slices.DeleteFunc(slices.Clone(c.Args[at:]), func(a string) bool { return a == ownArgs }))
	s.Process = proctest.Start(t, c)
	s.addr = s.WaitLine(`^listening http tcp (\S+)`)[1]
	s.WaitLine(`msg="grace: serving"`)
	s.transport = &http.Transport{DisableKeepAlives: true}
	s.client = &http.Client{Transport: s.transport, Timeout: 2 * proctest.Limit}
	return s
}

// get asks for a path over a new connection.
func (s *server) get(path string) (string, error) {
	resp, err := s.client.Get("http://" + s.addr + path)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return strings.TrimSpace(string(b)), err
}

func (s *server) mustGet(path string) string {
	s.t.Helper()
	got, err := s.get(path)
	if err != nil {
		s.t.Fatalf("GET %s: %v", path, err)
	}
	return got
}

// servingPid is the pid that answers.
func (s *server) servingPid() int {
	s.t.Helper()
	return atoi(s.t, s.mustGet("/pid"))
}

// successor gives the pid that answers once the old process has handed over. An Accept
// of the old process that was under way in that moment may take one connection more.
func (s *server) successor(old int) int {
	s.t.Helper()
	pid, late := 0, 0
	for range 10 {
		if got := s.servingPid(); got != old {
			pid = got
		} else if late++; late > 1 {
			s.t.Fatalf("process %d goes on accepting after its hand-over", old)
		}
	}
	return pid
}

// filePid is the pid in the PID file.
func (s *server) filePid() int {
	s.t.Helper()
	b, err := os.ReadFile(s.pidFile)
	if err != nil {
		s.t.Fatal(err)
	}
	return atoi(s.t, strings.TrimSpace(string(b)))
}

// misbehave makes the next generation misbehave, see the server's misbehave.go.
func (s *server) misbehave(how string) {
	s.t.Helper()
	if err := os.WriteFile(s.misFile, []byte(how), 0o644); err != nil {
		s.t.Fatal(err)
	}
}

// upgrade calls Upgrade in the serving process and gives its result.
func (s *server) upgrade(query ...string) upgradeResult {
	s.t.Helper()
	return parseResult(s.t, s.mustGet("/upgrade?"+strings.Join(query, "&")))
}

// beginUpgrade calls Upgrade without waiting for its result.
func (s *server) beginUpgrade() <-chan string {
	result := make(chan string, 1)
	go func() {
		got, err := s.get("/upgrade")
		if err != nil {
			got = err.Error()
		}
		result <- got
	}()
	return result
}

// waitResult waits for what beginUpgrade has begun.
func (s *server) waitResult(c <-chan string) upgradeResult {
	s.t.Helper()
	select {
	case got := <-c:
		return parseResult(s.t, got)
	case <-time.After(proctest.Limit):
		s.t.Fatalf("Upgrade has not returned after %v", proctest.Limit)
		panic("not reached")
	}
}

func parseResult(t testing.TB, got string) (r upgradeResult) {
	t.Helper()
	if err := json.Unmarshal([]byte(got), &r); err != nil {
		t.Fatalf("/upgrade answered %q: %v", got, err)
	}
	return r
}

// mustUpgrade upgrades by signal and gives the pid of the new process, once it
// is the only one.
func (s *server) mustUpgrade() int {
	s.t.Helper()
	old := s.filePid()
	s.Signal(old, syscall.SIGUSR2)
	proctest.WaitFor(s.t, proctest.Limit, "a new pid in the PID file", func() bool { return s.filePid() != old })
	s.WaitGone(old)
	pid := s.WaitAlone()
	if got := s.filePid(); got != pid {
		s.t.Fatalf("the PID file names %d, and %d is left", got, pid)
	}
	return pid
}

// A held request is one that its server is busy with until it is released.
type held struct {
	t    testing.TB
	pid  int // of the process that has it
	conn net.Conn
	body *bufio.Reader
}

func (s *server) hold() *held {
	s.t.Helper()
	c, err := net.DialTimeout("tcp", s.addr, proctest.Limit)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(2 * proctest.Limit))
	fmt.Fprintf(c, "POST /hold HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		s.t.Fatalf("POST /hold: %v", err)
	}
	h := &held{t: s.t, conn: c, body: bufio.NewReader(resp.Body)}
	defer c.SetDeadline(time.Time{}) // how long it is held is the test's affair
	line, err := h.body.ReadString('\n')
	if err != nil {
		s.t.Fatalf("POST /hold: %v", err)
	}
	h.pid = atoi(s.t, strings.TrimSpace(line))
	return h
}

// release ends the request and checks that its process has answered it.
func (h *held) release() {
	h.t.Helper()
	h.conn.SetDeadline(time.Now().Add(2 * proctest.Limit))
	fmt.Fprintf(h.conn, "0\r\n\r\n")
	rest, err := io.ReadAll(h.body)
	if want := fmt.Sprintf("done %d\n", h.pid); err != nil || string(rest) != want {
		h.t.Errorf("a held request ended with %q, error %v; want %q", rest, err, want)
	}
	h.conn.Close()
}

// cutOff waits until the request's connection was cut off.
func (h *held) cutOff() {
	h.t.Helper()
	h.conn.SetReadDeadline(time.Now().Add(2 * proctest.Limit))
	rest, err := io.ReadAll(h.body)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		h.t.Errorf("a held request was not cut off")
	}
	if err == nil {
		h.t.Errorf("a held request ended with %q; want it cut off", rest)
	}
}

// A load asks the server for its pid all the time, each time over a new
// connection. It has done so once when startLoad returns.
type load struct {
	cancel context.CancelFunc
	done   chan struct{}
	pids   map[int]int // answers by pid
	failed []error
	round  atomic.Int64 // a number that the test changes
	worst  int          // the most requests of one client that failed and had begun in one round
}

func (s *server) startLoad(clients int) *load {
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{cancel: cancel, done: make(chan struct{}), pids: map[int]int{}}
	type answer struct {
		text string
		err  error
		from [2]int // client and round
	}
	answers, first := make(chan answer), make(chan struct{})
	for client := range clients {
		go func() {
			for ctx.Err() == nil {
				from := [2]int{client, int(l.round.Load())}
				got, err := s.get("/pid")
				answers <- answer{got, err, from}
			}
			answers <- answer{text: "end"}
		}()
	}
	go func() {
		defer close(l.done)
		failed := map[[2]int]int{}
		var once sync.Once
		for ended := 0; ended < clients; {
			a := <-answers
			once.Do(func() { close(first) })
			pid, err := strconv.Atoi(a.text)
			switch {
			case a.text == "end":
				ended++
			case a.err != nil:
				l.failed = append(l.failed, a.err)
				failed[a.from]++
				l.worst = max(l.worst, failed[a.from])
			case err != nil:
				l.failed = append(l.failed, err)
			default:
				l.pids[pid]++
			}
		}
	}()
	<-first
	return l
}

func (l *load) stop() {
	l.cancel()
	<-l.done
}

// mustLoseNothing ends the load and fails the test for each request that failed.
func (l *load) mustLoseNothing(t testing.TB) {
	t.Helper()
	l.stop()
	total := 0
	for _, n := range l.pids {
		total += n
	}
	if total == 0 {
		t.Errorf("the load has asked for nothing")
	}
	for i, err := range l.failed {
		if i == 3 {
			break
		}
		t.Errorf("%d of %d requests failed: %v", len(l.failed), total+len(l.failed), err)
	}
}

func atoi(t testing.TB, s string) int {
	t.Helper()
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
