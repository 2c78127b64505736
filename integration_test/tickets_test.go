//go:build linux

package integration_test

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/proctest"
)

// startTLSServer starts the test server with n TLS servers besides, and gives their
// addresses. Each generation makes a certificate of its own, with the same name.
func startTLSServer(t testing.TB, n int, args ...string) (*server, []string) {
	t.Helper()
	for range n {
		args = append(args, "-serve", "none,https,tcp=127.0.0.1:0")
	}
	s := startServer(t, append(args, "-probation", "100ms")...)
	var addrs []string
	for _, line := range s.Lines() {
		if m := regexp.MustCompile(`^listening none-https tcp (\S+)`).FindStringSubmatch(line); m != nil {
			addrs = append(addrs, m[1])
		}
	}
	if len(addrs) != n {
		t.Fatalf("the server listens on %q, want %d addresses", addrs, n)
	}
	return s, addrs
}

// returningClient gives a client of crypto/tls that keeps its last session.
func returningClient(version uint16) *tls.Config {
	return &tls.Config{
		InsecureSkipVerify: true, ServerName: "test", MinVersion: version, MaxVersion: version,
		ClientSessionCache: tls.NewLRUClientSessionCache(1),
	}
}

const getAndClose = "GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"

// comeBack makes a connection and a request over it, and reports whether the connection has
// resumed a session.
func comeBack(t testing.TB, addr string, client *tls.Config) bool {
	t.Helper()
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: proctest.Limit}, "tcp", addr, client)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(proctest.Limit))
	io.WriteString(c, getAndClose)
	answer, err := io.ReadAll(c)
	if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 200 ") {
		t.Fatalf("answer %q, error %v", answer, err)
	}
	return c.ConnectionState().DidResume
}

// opensslComesBack is comeBack with OpenSSL, which keeps the session in a file.
func opensslComesBack(t testing.TB, openssl, addr, version, file string) bool {
	t.Helper()
	args := []string{"s_client", "-connect", addr, "-servername", "test", version, "-ign_eof", "-sess_out", file}
	if _, err := os.Stat(file); err == nil {
		args = append(args, "-sess_in", file)
	}
	cmd := exec.CommandContext(t.Context(), openssl, args...)
	cmd.Stdin = strings.NewReader(getAndClose)
	cmd.WaitDelay = proctest.Limit
	out, err := cmd.CombinedOutput()
	m := regexp.MustCompile(`(?m)^(New|Reused), TLSv1\.\d`).FindSubmatch(out)
	if err != nil || m == nil || !strings.Contains(string(out), "HTTP/1.1 200 ") {
		t.Fatalf("openssl %q: %v\n%s", args, err, out)
	}
	return string(m[1]) == "Reused"
}

// TestReturningClientsResume: a client that has a session ticket needs no full handshake, over
// three upgrades and one that fails: Go's client and OpenSSL's, TLS 1.2 and 1.3.
func TestReturningClientsResume(t *testing.T) {
	openssl := needTool(t, "openssl", "openssl")
	const percent = 95 // to be resumed, of each kind of client
	clients := map[string][]func() bool{}
	s, addrs := startTLSServer(t, 2)
	sessions := t.TempDir()
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		name := tls.VersionName(version)
		for range 20 {
			config := returningClient(version)
			clients["Go, "+name] = append(clients["Go, "+name], func() bool { return comeBack(t, addrs[0], config) })
		}
		option := "-" + strings.NewReplacer(" ", "", ".", "_").Replace(strings.ToLower(name))
		for i := range 2 {
			file := filepath.Join(sessions, fmt.Sprint(option, i))
			clients["OpenSSL, "+name] = append(clients["OpenSSL, "+name], func() bool { return opensslComesBack(t, openssl, addrs[0], option, file) })
		}
	}
	come := func(when string, least, most int) {
		t.Helper()
		for kind, all := range clients {
			resumed := 0
			for _, comes := range all {
				if comes() {
					resumed++
				}
			}
			if share := 100 * resumed / len(all); share < least || share > most {
				t.Errorf("%s: %d of %d sessions are resumed by %s", when, resumed, len(all), kind)
			}
		}
	}
	come("first connections", 0, 0)
	for i := range 3 {
		s.mustUpgrade()
		come(fmt.Sprintf("after upgrade %d", i+1), percent, 100)
	}
	s.misbehave("exit=3@check")
	if r := s.upgrade(); r.Err == "" {
		t.Fatal("the upgrade has not failed")
	}
	come("after an upgrade that has failed", percent, 100)

	// Another socket of the same process takes none of them.
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		config := returningClient(version)
		comeBack(t, addrs[0], config)
		if comeBack(t, addrs[1], config) {
			t.Errorf("%s: another socket takes the ticket", tls.VersionName(version))
		}
	}
	s.Signal(s.filePid(), 15)
	s.WaitAllGone()
	for _, line := range s.Lines() {
		if strings.Contains(line, "ticket") {
			t.Errorf("the log speaks of tickets: %s", line)
		}
	}
}
