//go:build linux

package integration_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	httpload "github.com/julofinance/grace/v3/internal/load"
	"github.com/julofinance/grace/v3/internal/proctest"
)

// TestLosslessHTTP2 upgrades under Go's HTTP/2 client. It sends a stream again
// that GOAWAY says was not begun, as RFC 9113 wants it; whatever else fails is
// lost.
func TestLosslessHTTP2(t *testing.T) {
	for _, way := range []string{"tls", "h2c"} {
		t.Run(way, func(t *testing.T) {
			s := startLoadServer(t, way)
			l := startHTTP2Load(t, s, way)
			n := variantRounds()
			for range n {
				l.waitAnswers(10)
				s.upgrade()
			}
			l.waitAnswers(10)
			l.mustLoseNone(n)
			mustCutNone(t, s)
		})
	}
}

// An http2Load asks in several ways over one transport.
type http2Load struct {
	t      testing.TB
	base   string
	client *http.Client
	stop   chan struct{}
	wg     sync.WaitGroup

	mu       sync.Mutex
	answered map[string]int
	pids     map[string]bool
	lost     []string
}

func startHTTP2Load(t testing.TB, s *loadServer, way string) *http2Load {
	tr := &http.Transport{Protocols: new(http.Protocols)}
	l := &http2Load{
		t: t, client: &http.Client{Transport: tr, Timeout: proctest.Limit}, stop: make(chan struct{}),
		answered: map[string]int{}, pids: map[string]bool{},
	}
	if way == "tls" {
		tr.Protocols.SetHTTP2(true)
		tr.TLSClientConfig = s.tlsConfig()
		l.base = "https://" + s.addr[way]
	} else {
		tr.Protocols.SetUnencryptedHTTP2(true)
		l.base = "http://" + s.addr[way]
	}
	body := strings.Repeat("0123456789", 3000)
	for i := range 3 {
		l.ask("echo", "POST", "/echo", body, body)
		l.ask("slow", "GET", fmt.Sprintf("/slow?ms=%d&say=x", 100*(i+1)), "", "x")
		l.ask("chunked", "GET", "/chunked?say=x", "", strings.Repeat("x\n", 5))
		l.ask("sized", "GET", "/sized?n=4321", "", strings.Repeat(".", 4321))
	}
	t.Cleanup(func() { l.end(); tr.CloseIdleConnections() })
	return l
}

// ask starts a client that asks until the load ends.
func (l *http2Load) ask(name, method, path, body, want string) {
	l.answered[name] = 0
	l.wg.Go(func() {
		for {
			select {
			case <-l.stop:
				return
			default:
			}
			pid, err := l.once(method, path, body, want)
			l.mu.Lock()
			if err != nil {
				l.lost = append(l.lost, fmt.Sprintf("%s: %v", name, err))
			} else {
				l.answered[name]++
				l.pids[pid] = true
			}
			l.mu.Unlock()
		}
	})
}

func (l *http2Load) once(method, path, body, want string) (pid string, err error) {
	req, err := http.NewRequest(method, l.base+path, bytes.NewReader([]byte(body)))
	if err != nil {
		return "", err
	}
	resp, err := l.client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	switch {
	case err != nil:
	case resp.ProtoMajor != 2:
		err = fmt.Errorf("answered by %s", resp.Proto)
	case resp.StatusCode != 200 || string(got) != want:
		err = fmt.Errorf("answered %s, %.40q", resp.Status, got)
	}
	return resp.Header.Get("X-Pid"), err
}

// waitAnswers waits until n more requests of each sort are answered.
func (l *http2Load) waitAnswers(n int) {
	l.t.Helper()
	want := map[string]int{}
	l.mu.Lock()
	for name, have := range l.answered {
		want[name] = have + n
	}
	l.mu.Unlock()
	proctest.WaitFor(l.t, proctest.Limit, "more answers over HTTP/2", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		for name, n := range want {
			if l.answered[name] < n {
				return false
			}
		}
		return true
	})
}

func (l *http2Load) end() {
	select {
	case <-l.stop:
	default:
		close(l.stop)
	}
	l.wg.Wait()
}

func (l *http2Load) mustLoseNone(upgrades int) {
	l.t.Helper()
	l.end()
	if len(l.pids) < upgrades {
		l.t.Errorf("%d processes have answered in %d upgrades", len(l.pids), upgrades)
	}
	for i, err := range l.lost {
		if i == 5 {
			break
		}
		l.t.Errorf("one of %d lost requests: %s", len(l.lost), err)
	}
}

// TestCurlHTTP2: curl is answered in each protocol before an upgrade and after it.
func TestCurlHTTP2(t *testing.T) {
	curl := needTool(t, "curl", "curl")
	s := startLoadServer(t, "tls", "h2c")
	for range 3 {
		pid := s.WaitAlone()
		for _, c := range []struct{ way, scheme, flag, version string }{
			{"tls", "https", "--http2", "2"},
			{"tls", "https", "--http1.1", "1.1"},
			{"h2c", "http", "--http2-prior-knowledge", "2"},
			{"h2c", "http", "--http1.1", "1.1"},
		} {
			out, err := exec.Command(curl, "-sSk", "--max-time", "30", c.flag, "-w", " %{http_version} %header{x-pid}", c.scheme+"://"+s.addr[c.way]+"/sized?n=3").CombinedOutput()
			if want := fmt.Sprintf("... %s %d", c.version, pid); err != nil || string(out) != want {
				t.Errorf("curl %s %s says %q, error %v; want %q", c.flag, c.scheme, out, err, want)
			}
		}
		s.upgrade()
	}
}

// TestLosslessH2load upgrades under h2load, which does not send again what
// GOAWAY says was not begun. So the servers must have begun exactly what it got
// answers to: then what it has counted as failed can be sent again by others. A
// relay sees to it that none of its connections is refused. With hints each answer
// comes after a 103.
func TestLosslessH2load(t *testing.T) {
	h2load := needTool(t, "h2load", "nghttp2-client")
	for _, name := range []string{"tls", "h2c", "tls&hints=1", "h2c&hints=1"} {
		t.Run(name, func(t *testing.T) {
			way, query, _ := strings.Cut(name, "&")
			s := startLoadServer(t, way)
			relay, err := httpload.NewRelay("tcp", s.addr[way], 0)
			if err != nil {
				t.Fatal(err)
			}
			defer relay.Close()
			scheme := map[string]string{"tls": "https", "h2c": "http"}[way]
			stop := make(chan struct{})
			end := sync.OnceFunc(func() { close(stop) })
			defer end()
			done := make(chan h2loadResult, 1)
			go func() {
				var sum h2loadResult
				for ended := false; !ended && sum.err == nil; {
					sum.add(runH2load(h2load, scheme+"://"+relay.Addr()+"/sized?n=1000&"+query))
					select {
					case <-stop:
						ended = true
					default:
					}
				}
				done <- sum
			}()
			s.upgrades(variantRounds())
			end()
			sum := <-done
			if sum.err != nil {
				t.Fatal(sum.err)
			}
			last := s.filePid()
			s.Signal(last, 15)
			s.WaitGone(last)
			begun := 0
			for _, line := range s.Lines() {
				if m := regexp.MustCompile(`^begun pid=\d+ n=(\d+)`).FindStringSubmatch(line); m != nil {
					begun += atoi(t, m[1])
				}
			}
			if relay.Close(); relay.Unserved() > 0 {
				t.Errorf("%d connections of h2load were refused, or ended without a byte", relay.Unserved())
			}
			if sum.succeeded == 0 || begun != sum.succeeded {
				t.Errorf("the servers have begun %d requests, and h2load got answers to %d (%d not begun)", begun, sum.succeeded, sum.failed)
			}
			mustCutNone(t, s)
			t.Logf("h2load: %d answers, %d not begun", sum.succeeded, sum.failed)
		})
	}
}

type h2loadResult struct {
	succeeded, failed int
	err               error
}

func (r *h2loadResult) add(o h2loadResult) {
	r.succeeded += o.succeeded
	r.failed += o.failed
	r.err = o.err
}

var h2loadLine = regexp.MustCompile(`requests: \d+ total, \d+ started, (\d+) done, (\d+) succeeded`)

// runH2load sends 400 requests over 4 connections, and ends with the last
// answer, or when the server has ended the connections.
func runH2load(path, url string) (r h2loadResult) {
	cmd := exec.Command(path, "-n", "400", "-c", "4", "-m", "5", url)
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	m := h2loadLine.FindSubmatch(out)
	if m == nil {
		r.err = fmt.Errorf("h2load: %v\n%s", err, out)
		return r
	}
	fmt.Sscan(string(m[1]), &r.failed) // done
	fmt.Sscan(string(m[2]), &r.succeeded)
	r.failed -= r.succeeded
	return r
}
