//go:build linux

package integration_test

import (
	"fmt"
	"net/http"
	"syscall"
	"testing"

	"github.com/julofinance/grace/v3/internal/proctest"
)

// ready gives the status of /readyz over a new connection, and whether the answer says
// "Connection: close", which the client has not asked for.
func (s *server) ready() (status int, closes bool) {
	s.t.Helper()
	c := &http.Client{Transport: &http.Transport{}, Timeout: 2 * proctest.Limit}
	defer c.CloseIdleConnections()
	resp, err := c.Get("http://" + s.addr + "/readyz")
	if err != nil {
		s.t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode, resp.Close
}

// TestLameDuckAtTerm: from TERM on the process that serves is not ready and sends its clients
// away, and accepts still; one more signal ends it. At an upgrade there is no such time: the
// service is ready all along, and an old process that stands by at the TERM ends at once.
func TestLameDuckAtTerm(t *testing.T) {
	for _, standsBy := range []bool{false, true} {
		t.Run(fmt.Sprintf("an old process stands by %v", standsBy), func(t *testing.T) {
			s := startServer(t, "-lame", "1h", "-probation", "1h")
			serving := s.servingPid()
			if standsBy {
				old := serving
				s.Signal(old, syscall.SIGUSR2)
				s.WaitLine(`the new process is ready; standing by`)
				serving = s.successor(old)
			}
			if status, closes := s.ready(); status != http.StatusOK || closes {
				t.Errorf("before the stop: status %d, Connection: close: %v; want 200 and a connection that stays", status, closes)
			}
			if n := s.Count(`see LameDuck`); n > 0 {
				t.Errorf("before the stop %d processes say that they are to stop", n)
			}
			s.Signal(serving, syscall.SIGTERM)
			s.WaitLine(fmt.Sprintf(`accepting still, see LameDuck; .* from=%d`, serving))
			if standsBy {
				s.WaitAlone()
			}
			for range 2 {
				if status, closes := s.ready(); status != http.StatusServiceUnavailable || !closes {
					t.Errorf("after TERM: status %d, Connection: close: %v; want 503 and a connection that ends", status, closes)
				}
			}
			if got := s.servingPid(); got != serving {
				t.Errorf("after TERM process %d answers, want %d", got, serving)
			}
			if n := s.Count(`see LameDuck`); n != 1 {
				t.Errorf("%d processes say that they accept still, want 1", n)
			}
			s.Signal(serving, syscall.SIGINT) // not TERM again, which counts as one within half a second
			s.WaitAllGone()
			s.mustBeFree()
		})
	}
}

// TestLameDuckEnds: it drains when its time is up.
func TestLameDuckEnds(t *testing.T) {
	s := startServer(t, "-lame", "100ms")
	s.Signal(s.Pid(), syscall.SIGTERM)
	s.WaitLine(`accepting still, see LameDuck; .* for=100ms`)
	s.WaitLine(`msg="grace: drained"`)
	if ws := s.WaitExit(s.Pid()); ws.ExitStatus() != 0 {
		t.Errorf("it has ended with %v, want 0", ws)
	}
}
