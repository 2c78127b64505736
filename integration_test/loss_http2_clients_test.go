//go:build linux

package integration_test

import (
	"bytes"
	"crypto/tls"
	"flag"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/julofinance/grace/v3/internal/proctest"
	"github.com/julofinance/grace/v3/internal/testing/http2test"
)

var http2Upgrades = flag.Int("http2-upgrades", 10, "how many upgrades TestLosslessHTTP2Clients makes")

// TestLosslessHTTP2Clients upgrades under many clients of HTTP/2 at once, none of which
// sends a request a second time, each through a relay of its own. Not one request may
// fail.
func TestLosslessHTTP2Clients(t *testing.T) {
	s := startLoadServer(t, "tls", "h2c")
	curls := []*curlClient{startCurl(t, "curl, tls", s, "tls"), startCurl(t, "curl, h2c", s, "h2c"), startParallelCurl(t, "curl -Z, tls", s)}
	clients := []*lossClient{}
	for _, c := range curls {
		clients = append(clients, c.lossClient)
	}
	for _, way := range []string{"tls", "h2c"} {
		clients = append(clients,
			startPosts(t, "posts, "+way, s, way, 8),
			startH2load(t, "h2load, "+way, s, way),
			startGRPCFront(t, "nginx grpc_pass, "+way, s, way),
		)
	}
	// meet waits until each client has opened a connection more than before, and so has
	// met the process that serves now; and until it had answers.
	came := map[*lossClient][2]int{}
	meet := func() {
		t.Helper()
		for _, c := range clients {
			proctest.WaitFor(t, 2*proctest.Limit, "connections and answers of "+c.name, func() bool {
				return c.relay.Accepted() > came[c][0] && int(c.answered.Load()) >= came[c][1]+c.least || c.hasLost()
			})
		}
		for _, c := range clients {
			came[c] = [2]int{c.relay.Accepted(), int(c.answered.Load())}
		}
	}
	for range *http2Upgrades {
		meet()
		s.upgrade()
	}
	meet()
	reportLosses(t, clients)
	for _, c := range curls {
		c.mustHaveKept(t, *http2Upgrades)
	}
	mustCutNone(t, s)
	t.Logf("%d upgrades", *http2Upgrades)
}

// startPosts sends bodies that can't be sent again.
func startPosts(t testing.TB, name string, s *loadServer, way string, n int) *lossClient {
	t.Helper()
	c := newLossClient(t, name, s, way)
	client := http2test.NewClient(func() (net.Conn, error) {
		conn, err := net.DialTimeout("tcp", c.relay.Addr(), proctest.Limit)
		if err == nil && way == "tls" {
			config := s.tlsConfig()
			config.NextProtos = []string{"h2"}
			conn = tls.Client(conn, config)
		}
		return conn, err
	})
	client.Limit = proctest.Limit
	t.Cleanup(client.Close)
	c.again(n, func() (int, error) { return postOnce(client) })
	return c
}

func postOnce(client *http2test.Client) (int, error) {
	got, err := client.Post("/echo", "one ", "after ", "another")
	if err == nil && got != "one after another" {
		err = fmt.Errorf("answered %q", got)
	}
	if err != nil {
		return 0, err
	}
	return 1, nil
}

// startGRPCFront puts nginx before the server, and sends the same through it. What nginx
// answers for the server, 502 say, is no answer.
func startGRPCFront(t testing.TB, name string, s *loadServer, way string) *lossClient {
	t.Helper()
	c := newLossClient(t, name, s, way)
	front := startNginxAs(t, map[string]string{"tls": nginxGRPCS, "h2c": nginxGRPC}[way], c.relay.Addr())
	client := http2test.NewClient(func() (net.Conn, error) { return net.DialTimeout("tcp", front, proctest.Limit) })
	client.Limit = proctest.Limit
	t.Cleanup(client.Close)
	c.again(8, func() (int, error) { return postOnce(client) })
	return c
}

// startH2load runs h2load, which is done when its connections were told to go away. It
// counts as failed also what it had ready, and did not send when it read GOAWAY: so what
// was sent is counted on the way, and all of it must have been answered.
func startH2load(t testing.TB, name string, s *loadServer, way string) *lossClient {
	t.Helper()
	h2load := needTool(t, "h2load", "nghttp2-client")
	c := newLossClient(t, name, s, way)
	tap := newHTTP2Tap(t, s, way, c.relay.Addr())
	c.least = 1
	url := map[string]string{"tls": "https", "h2c": "http"}[way] + "://" + tap.ln.Addr().String() + "/sized?n=1000"
	unsent := 0
	c.again(1, func() (int, error) {
		out, err := command(h2load, "-n", "300", "-c", "3", "-m", "4", url).CombinedOutput()
		m := h2loadCounts.FindSubmatch(out)
		if err != nil || m == nil {
			return 0, fmt.Errorf("h2load: %v\n%s", err, out)
		}
		answers := atoi(t, string(m[2]))
		unsent += atoi(t, string(m[1])) - answers
		return answers, nil
	})
	c.after = func() string {
		tap.close()
		if sent, answered := tap.streams.Load(), c.answered.Load(); sent != answered {
			c.lost = append(c.lost, fmt.Sprintf("%d requests were sent, and %d answered", sent, answered))
		}
		return fmt.Sprintf(", %d not sent when told to go away", unsent)
	}
	return c
}

var h2loadCounts = regexp.MustCompile(`requests: (\d+) total, \d+ started, \d+ done, (\d+) succeeded`)

// A curlClient runs curl again and again, each time with many requests on one connection if
// that curl can.
type curlClient struct {
	*lossClient
	curl string
	each int          // requests of a run
	anew int          // connections that it may open when it is told to go away
	done atomic.Int64 // runs
}

func newCurlClient(t testing.TB, name string, s *loadServer, way string) *curlClient {
	t.Helper()
	c := &curlClient{lossClient: newLossClient(t, name, s, way), curl: needTool(t, "curl", "curl"), each: 1, anew: 2}
	c.least = 1
	return c
}

// startCurl has a request after the other.
func startCurl(t testing.TB, name string, s *loadServer, way string) *curlClient {
	t.Helper()
	c := newCurlClient(t, name, s, way)
	switch {
	case way == "tls":
		c.each = 100
		c.start("a body 2 200", "--http2", "-d", "a body", "https://"+c.relay.Addr()+"/echo?[1-100]")
	case c.keepsH2C(t):
		c.each = 100
		c.start("a body 2 200", "--http2-prior-knowledge", "-d", "a body", "http://"+c.relay.Addr()+"/echo?[1-100]")
	default:
		c.start("a body 2 200", "--http2-prior-knowledge", "-X", "POST", "-T", "-", "http://"+c.relay.Addr()+"/echo")
	}
	return c
}

// startParallelCurl has fifty requests at once.
func startParallelCurl(t testing.TB, name string, s *loadServer) *curlClient {
	t.Helper()
	c := newCurlClient(t, name, s, "tls")
	c.each, c.anew = 500, 50
	c.start(" 6 2 200", "--http2", "-Z", "-o", os.DevNull, "-w", " %{size_download} %{http_version} %{http_code} %{num_connects}\n",
		"-d", "a body", "https://"+c.relay.Addr()+"/echo?[1-500]")
	return c
}

// start runs curl with these arguments; each line that it prints is want, and how many
// connections it has opened for that.
func (c *curlClient) start(want string, args ...string) {
	line := regexp.MustCompile("(?m)^" + want + ` (\d+)\n`)
	args = append([]string{"-sSk", "--max-time", "30", "-w", " %{http_version} %{http_code} %{num_connects}\n"}, args...)
	c.again(1, func() (int, error) {
		cmd := command(c.curl, args...)
		cmd.Stdin = strings.NewReader("a body")
		var said bytes.Buffer
		cmd.Stderr = &said
		out, err := cmd.Output()
		answers := len(line.FindAll(out, -1))
		if err != nil || answers != c.each || len(line.ReplaceAll(out, nil)) > 0 {
			return answers, fmt.Errorf("curl: %d answers, want %d: %v\n%s", answers, c.each, err, &said)
		}
		c.done.Add(1)
		return answers, nil
	})
	c.after = func() string { return fmt.Sprintf(", %d in a run, %d runs", c.each, c.done.Load()) }
}

// mustHaveKept checks that no connection was opened but for a run, and after an upgrade: one, or
// two if the first has still come to the old process; with -Z up to one for each request that is
// sent at once.
func (c *curlClient) mustHaveKept(t testing.TB, upgrades int) {
	t.Helper()
	if opened, most := c.relay.Accepted(), int(c.done.Load())+c.anew*upgrades; opened > most {
		t.Errorf("%s: %d connections were opened for %d runs and %d upgrades, want at most %d", c.name, opened, c.done.Load(), upgrades, most)
	}
}

// keepsH2C reports whether curl can send a second request on a connection of HTTP/2 without TLS:
// that of Debian 12, 7.88, can't with any server.
func (c *curlClient) keepsH2C(t testing.TB) bool {
	t.Helper()
	plain := httptest.NewUnstartedServer(http.NotFoundHandler())
	plain.Config.Protocols = new(http.Protocols)
	plain.Config.Protocols.SetUnencryptedHTTP2(true)
	plain.Start()
	defer plain.Close()
	out, err := command(c.curl, "-sS", "--max-time", "30", "--http2-prior-knowledge", "-o", os.DevNull, "-w", "%{http_code} %{num_connects}\n", plain.URL+"/[1-2]").CombinedOutput()
	keeps := err == nil && string(out) == "404 1\n404 0\n"
	if !keeps {
		t.Logf("this curl sends one request on a connection of HTTP/2 without TLS: %v, %q", err, out)
	}
	return keeps
}
