//go:build linux

package integration_test

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/proctest"
)

// upgradeAndLinger asks the process that the PID file names for an upgrade, by signal, and
// returns the new one's pid when that may be upgraded itself.
func (s *server) upgradeAndLinger() int {
	s.t.Helper()
	old := s.filePid()
	s.Signal(old, syscall.SIGUSR2)
	s.WaitLine(fmt.Sprintf(`msg="grace: the old process (lingers; this one may be upgraded|is gone)" .*old=%d`, old))
	pid := s.filePid()
	if pid == old {
		s.t.Fatalf("the PID file names %d still", old)
	}
	if got := s.servingPid(); got != pid {
		s.t.Fatalf("process %d answers, want %d", got, pid)
	}
	return pid
}

// A stream is one that lasts until its client ends it.
type stream struct {
	t    testing.TB
	name string
	pid  int // of the process that has it
	conn net.Conn
	r    *bufio.Reader
	n    int // what has gone over it
}

// streams opens one of each kind; backend is where the tunnel leads.
func (s *server) streams(backend string) []*stream {
	s.t.Helper()
	return []*stream{s.stream("/sse"), s.stream("/websocket"), s.stream("/tunnel?to=" + backend)}
}

func (s *server) stream(path string) *stream {
	s.t.Helper()
	c, err := net.DialTimeout("tcp", s.addr, proctest.Limit)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	st := &stream{t: s.t, name: path, conn: c, r: bufio.NewReader(c)}
	c.SetDeadline(time.Now().Add(2 * proctest.Limit))
	fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: test\r\n", path)
	if path != "/sse" {
		fmt.Fprintf(c, "Connection: Upgrade\r\nUpgrade: websocket\r\n")
	}
	fmt.Fprintf(c, "\r\n")
	resp, err := http.ReadResponse(st.r, nil)
	if err != nil {
		s.t.Fatalf("GET %s: %v", path, err)
	}
	if path == "/sse" {
		st.r = bufio.NewReader(resp.Body)
	} else if st.pid, err = strconv.Atoi(resp.Header.Get("X-Pid")); err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		s.t.Fatalf("GET %s: %s, %v", path, resp.Status, resp.Header)
	}
	st.mustLive()
	return st
}

// live sends something over the stream and back, or reads what comes next.
func (st *stream) live() error {
	st.conn.SetDeadline(time.Now().Add(2 * proctest.Limit))
	defer st.conn.SetDeadline(time.Time{})
	st.n++
	want := fmt.Sprintf("%d %d", st.pid, st.n)
	if st.name == "/sse" {
		line, err := st.r.ReadString('\n')
		if err == nil {
			_, err = st.r.ReadString('\n')
		}
		got := strings.TrimPrefix(strings.TrimSpace(line), "data: ")
		if st.pid == 0 {
			fmt.Sscan(got, &st.pid)
			want = fmt.Sprintf("%d %d", st.pid, st.n)
		}
		if err != nil || got != want {
			return fmt.Errorf("event %q, %w; want %q", line, err, want)
		}
		return nil
	}
	if strings.HasPrefix(st.name, "/tunnel") {
		want = fmt.Sprintf("backend %d", st.n)
	}
	if _, err := fmt.Fprintf(st.conn, "%d\n", st.n); err != nil {
		return err
	}
	if got, err := st.r.ReadString('\n'); err != nil || strings.TrimSpace(got) != want {
		return fmt.Errorf("answer %q, %w; want %q", got, err, want)
	}
	return nil
}

func (st *stream) mustLive() {
	st.t.Helper()
	if err := st.live(); err != nil {
		st.t.Fatalf("%s of process %d: %v", st.name, st.pid, err)
	}
}

// cutOff waits until the stream has ended.
func (st *stream) cutOff() {
	st.t.Helper()
	for end := time.Now().Add(proctest.Limit); time.Now().Before(end); {
		if err := st.live(); errors.Is(err, os.ErrDeadlineExceeded) {
			break
		} else if err != nil {
			return
		}
	}
	st.t.Fatalf("%s of process %d was not cut off", st.name, st.pid)
}

// startBackend is what the tunnels lead to: it answers each line.
func startBackend(t testing.TB) (addr string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer c.Close()
		fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		for lines := bufio.NewScanner(rw); lines.Scan(); {
			fmt.Fprintf(c, "backend %s\n", lines.Text())
		}
	})}
	go srv.Serve(ln)
	t.Cleanup(func() { srv.Close() })
	return ln.Addr().String()
}

// mustLiveAll looks at all streams.
func mustLiveAll(all []*stream) {
	for _, st := range all {
		st.t.Helper()
		st.mustLive()
	}
}

// took gives the time between two log lines.
func (s *server) took(from, to string) time.Duration {
	s.t.Helper()
	var at [2]time.Time
	for i, pattern := range []string{from, to} {
		var text string
		var err error
		for _, line := range s.Lines() {
			if m := regexp.MustCompile(`time=(\S+) .*` + pattern).FindStringSubmatch(line); m != nil {
				text = m[1]
			}
		}
		if at[i], err = time.Parse("2006-01-02T15:04:05.000Z07:00", text); err != nil {
			s.t.Fatal(err)
		}
	}
	return at[1].Sub(at[0])
}
