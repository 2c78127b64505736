//go:build linux

package integration_test

import (
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	httpload "github.com/julofinance/grace/v3/internal/load"
	"github.com/julofinance/grace/v3/internal/proctest"
)

var tlsUpgrades = flag.Int("tls-upgrades", 10, "how many upgrades TestLosslessMovedTLSClients makes")

// TestLosslessMovedTLSClients upgrades under the clients of HTTPS that people run, all at
// once, none of which sends a request a second time, each through a relay of its own. Not
// one request may fail, and no connection may be told to close. Each client has at the end the
// connections with which it has begun, and answers over all of them; with each upgrade all have
// moved. Over each of those of curl and the scripts, which name them, each of the processes has
// answered.
func TestLosslessMovedTLSClients(t *testing.T) {
	s := startLoadServer(t, "tls", "--", "-movetls")
	clients := []*tlsClient{
		startCurls(t, s),
		startScript(t, s, "Node https.Agent", needTool(t, "node", "nodejs"), "-e", nodeScript),
		startScript(t, s, "Python http.client", needTool(t, "python3", "python3"), "-c", pythonScript),
		startSClient(t, s),
		startTLSFront(t, s, "nginx", func(addr string) string { return startNginxAs(t, nginxHTTPS, addr) }),
		startTLSFront(t, s, "HAProxy", func(addr string) string { return startTLSHAProxy(t, addr) }),
	}
	lost := false
	meet := func() {
		t.Helper()
		pid := s.filePid()
		for _, c := range clients {
			proctest.WaitFor(t, 2*proctest.Limit, fmt.Sprintf("answers of process %d to %s", pid, c.name), func() bool {
				return c.met(pid) || c.hasLost()
			})
			lost = lost || c.hasLost()
		}
	}
	meet()
	n := 0
	for ; n < *tlsUpgrades && !lost; n++ {
		s.upgrade()
		meet()
	}
	all := []*lossClient{}
	for _, c := range clients {
		all = append(all, c.lossClient)
	}
	reportLosses(t, all)
	for _, c := range clients {
		c.mustHaveKept(t, n+1)
	}
	mustCutNone(t, s)
	sockets := 0
	for _, c := range clients {
		sockets += c.sockets
	}
	// No process has more connections than were opened: the sum is that of all with each upgrade.
	moved, finished := s.drained("moved"), s.drained("finished")
	if moved != n*sockets || finished != 0 {
		t.Errorf("%d connections have moved and %d were finished, want %d and 0: %d with each upgrade", moved, finished, n*sockets, sockets)
	}
	t.Logf("%d upgrades: %d connections moved, %d finished", n, moved, finished)
}

// A tlsClient is one that keeps its connections.
type tlsClient struct {
	*lossClient
	sockets int // how many it keeps
	met     func(pid int) bool

	// lossClient.mu guards what follows.
	servedBy map[int][]string // by the number of the socket, if it is known: the pids that have answered
	kept     int              // sockets at the end
}

// newTLSClient makes one that keeps its sockets.
func newTLSClient(t testing.TB, s *loadServer, name string, sockets int) *tlsClient {
	t.Helper()
	c := &tlsClient{lossClient: newLossClient(t, name, s, "tls"), sockets: sockets, servedBy: map[int][]string{}}
	c.met = func(pid int) bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, pids := range c.servedBy {
			if pids[len(pids)-1] != strconv.Itoa(pid) {
				return false
			}
		}
		return len(c.servedBy) == sockets
	}
	return c
}

// answer counts an answer of the process pid over a socket.
func (c *tlsClient) answer(socket int, pid string) {
	c.answered.Add(1)
	if socket >= c.sockets {
		c.lose("a connection has ended, and another was opened")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if pids := c.servedBy[socket]; len(pids) == 0 || pids[len(pids)-1] != pid {
		c.servedBy[socket] = append(pids, pid)
	}
}

// mustHaveKept checks that the client has opened no other connections, and, where it is one
// that names them, that each of the processes has answered over each.
func (c *tlsClient) mustHaveKept(t testing.TB, processes int) {
	t.Helper()
	if opened := c.relay.Accepted(); opened != c.sockets || c.kept != c.sockets {
		t.Errorf("%s: %d connections were opened, and %d are there at the end; want %d", c.name, opened, c.kept, c.sockets)
	}
	for socket, pids := range c.servedBy {
		if len(pids) != processes {
			t.Errorf("%s: over socket %d %d processes have answered, want %d", c.name, socket, len(pids), processes)
		}
	}
}

// startCurls runs three of curl, each with all its requests on one connection, which is
// idle for some time or hardly any.
func startCurls(t testing.TB, s *loadServer) *tlsClient {
	t.Helper()
	curl := needTool(t, "curl", "curl")
	rates := []string{"1000/s", "100/s", "20/s"}
	c := newTLSClient(t, s, "curl --http1.1", len(rates))
	for i, rate := range rates {
		cmd := command(curl, "-sSkN", "--max-time", "30", "--http1.1", "--tlsv1.3", "--tls13-ciphers", "TLS_AES_256_GCM_SHA384",
			"--rate", rate, "-d", "a body", "-w", ` %{http_version} %{http_code} %{num_connects} %header{x-pid}\n`,
			"https://"+c.relay.Addr()+"/echo?[1-1000000000]")
		connects := "1" // curl sends again by itself, on a new connection, if one that it has kept breaks
		c.runs(t, cmd, func() { cmd.Process.Signal(syscall.SIGTERM) }, func(line string) {
			pid, ok := strings.CutPrefix(line, "a body 1.1 200 "+connects+" ")
			if !ok {
				c.lose(fmt.Sprintf("curl has got %q, on %s new connections", line, connects))
				return
			}
			connects = "0"
			c.answer(i, pid)
		})
	}
	c.after = func() string {
		c.kept = len(c.servedBy) // each has opened but the first
		return fmt.Sprintf(", %d kept", c.kept)
	}
	return c
}

//go:embed clients/https.js
var nodeScript string

//go:embed clients/https.py
var pythonScript string

// startScript runs a program that keeps four sockets: a line for each answer has the number of
// the socket, the process that has answered, and what was agreed upon in the handshake.
func startScript(t testing.TB, s *loadServer, name string, how ...string) *tlsClient {
	t.Helper()
	c := newTLSClient(t, s, name, 4)
	_, port, _ := net.SplitHostPort(c.relay.Addr())
	cmd := command(how[0], append(how[1:], port, "grace", strconv.Itoa(c.sockets))...)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.runs(t, cmd, func() { stdin.Close() }, func(line string) {
		var socket int
		var pid, version, cipher string
		if n, _ := fmt.Sscanf(line, "ok %d %s %s %s", &socket, &pid, &version, &cipher); n == 4 && version == "TLSv1.3" && strings.Contains(cipher, "GCM") {
			c.answer(socket, pid)
			return
		}
		c.mu.Lock()
		n, _ := fmt.Sscanf(line, "kept %d", &c.kept)
		c.mu.Unlock()
		if n != 1 {
			c.lose(line)
		}
	})
	c.after = func() string { return fmt.Sprintf(", %d kept", c.kept) }
	return c
}

// sClientUpdates is how many changes of keys s_client may be told to make: that of OpenSSL 3.0.19
// hangs after the 216th that is answered with another one, by net/http alone as well.
const sClientUpdates = 200

// startSClient runs OpenSSL's s_client, which changes its keys while it asks, and each time asks
// the server to change its own: with each process before every fourth request, for as long as
// it may.
func startSClient(t testing.TB, s *loadServer) *tlsClient {
	t.Helper()
	c := newTLSClient(t, s, "openssl s_client", 1)
	// Some of what it prints goes to its standard error. -no_ign_eof: a line K is a command.
	cmd := command("/bin/sh", "-c", `exec "$@" 2>&1`, "sh", needTool(t, "openssl", "openssl"), "s_client",
		"-connect", c.relay.Addr(), "-servername", "grace", "-tls1_3", "-ciphersuites", "TLS_AES_256_GCM_SHA384", "-alpn", "http/1.1", "-no_ign_eof")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	lines := make(chan string, 1000)
	c.runs(t, cmd, func() {}, func(line string) { lines <- strings.TrimSpace(line) })
	await := func(prefix string) (rest string, ok bool) {
		late := time.After(2 * proctest.Limit)
		for {
			select {
			case line := <-lines:
				switch rest, ok := strings.CutPrefix(line, prefix); {
				case ok:
					return rest, true
				case strings.HasPrefix(line, "CONNECTED("):
					c.kept++
				}
			case <-late:
				c.lose(fmt.Sprintf("%s has not printed %q within %v", c.name, prefix, 2*proctest.Limit))
				return "", false
			}
		}
	}
	each := max(1, sClientUpdates/(*tlsUpgrades+1))
	updates, of, asked := 0, "", 0 // asked: requests to the process of
	ask := func(i int) bool {
		if asked%4 == 0 && asked/4 < each && updates < sClientUpdates {
			io.WriteString(stdin, "K\n")
			if _, ok := await("KEYUPDATE"); !ok {
				return false
			}
			updates++
		}
		body := fmt.Sprintf("request %d\n", i)
		fmt.Fprintf(stdin, "POST /echo HTTP/1.1\r\nHost: grace\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		if _, ok := await("HTTP/1.1 200 OK"); !ok {
			return false
		}
		pid, ok := await("X-Pid: ")
		if ok {
			_, ok = await(strings.TrimSpace(body))
		}
		if !ok {
			return false
		}
		c.answer(0, pid)
		if asked++; pid != of {
			of, asked = pid, 0
		}
		return true
	}
	c.work.Go(func() {
		defer stdin.Close()
		if _, ok := await("Verify return code"); !ok { // lines are read from now on
			return
		}
		for i := 0; !c.ended.Load() && ask(i); i++ {
		}
	})
	c.after = func() string {
		if processes := len(c.servedBy[0]); updates < min(processes, sClientUpdates) {
			c.lose(fmt.Sprintf("%d changes of keys, and %d processes have answered", updates, processes))
		}
		return fmt.Sprintf(", %d kept, %d changes of keys", c.kept, updates)
	}
	return c
}

// startTLSFront puts a reverse proxy before the server, and posts through it. It is given the
// relay's address, and gives its own. All of its connections are opened before the first
// upgrade, and needed once more at the end.
func startTLSFront(t testing.TB, s *loadServer, name string, start func(addr string) string) *tlsClient {
	t.Helper()
	const clients = 8
	c := &tlsClient{lossClient: newLossClient(t, name, s, "tls"), sockets: clients}
	addr := start(c.relay.Addr())
	if err := askTogether(addr, clients, s.filePid()); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	run := startHTTPLoad(t, httpload.Config{Addr: addr, Kinds: kinds(clients, httpload.KeepAlive)})
	take := func(rep httpload.Report) httpload.Report {
		for _, l := range rep.Losses[len(c.lost):] {
			c.lose(l.String())
		}
		return rep
	}
	answered := 0 // until the process before
	c.met = func(pid int) bool {
		rep := take(run.Snapshot())
		if n := len(rep.Pids); n == 0 || rep.Pids[n-1] != pid || rep.Total().Answered < answered+c.least {
			return false
		}
		answered = rep.Total().Answered
		return true
	}
	c.after = func() string {
		c.answered.Store(int64(take(run.Stop()).Total().Answered))
		if err := askTogether(addr, clients, s.filePid()); err != nil {
			c.lose(err.Error())
		} else {
			c.kept = clients // but for new ones, which the relay counts
		}
		return fmt.Sprintf(", %d kept", c.kept)
	}
	return c
}

// askTogether sends n requests at once that are answered when all have come, by the process
// pid.
func askTogether(addr string, n, pid int) error {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 2 * proctest.Limit}
	errs := make(chan error, n)
	for range n {
		go func() {
			resp, err := client.Get(fmt.Sprintf("http://%s/together?n=%d&say=all", addr, n))
			if err != nil {
				errs <- err
				return
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if by := resp.Header.Get("X-Pid"); err == nil && (string(body) != "all" || by != strconv.Itoa(pid)) {
				err = fmt.Errorf("%q is the answer of process %s to one of %d requests at once, want that of %d", body, by, n, pid)
			}
			errs <- err
		}()
	}
	var all error
	for range n {
		all = errors.Join(all, <-errs)
	}
	return all
}

// startTLSHAProxy puts HAProxy in front of addr, and gives its own address. It keeps
// connections.
func startTLSHAProxy(t testing.TB, addr string) string {
	t.Helper()
	socket, own := boundSocket(t)
	startHAProxy(t, fmt.Sprintf(`
frontend front
	bind fd@3
	default_backend app
backend app
	http-reuse always
	server app %s pool-purge-delay 1h ssl verify none alpn http/1.1 sni str(grace) ssl-min-ver TLSv1.3 ciphersuites TLS_AES_256_GCM_SHA384
`, addr), socket)
	return own
}
