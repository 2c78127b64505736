//go:build linux

package integration_test

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"testing"

	"github.com/julofinance/grace/v3/internal/proctest"
	"github.com/julofinance/grace/v3/internal/testing/logtest"
	"github.com/julofinance/grace/v3/internal/testing/tlstest"
)

// startTLSMover starts a moveserver whose TLS connections move.
func startTLSMover(t testing.TB) *mover {
	t.Helper()
	return startTLSMoverBy(t, "tls", "tls")
}

// startTLSMoverBy has how the first process and the others do TLS: by HTTPS, "tls", or by a
// listener of the program, "tlslistener".
func startTLSMoverBy(t testing.TB, first, next string) *mover {
	t.Helper()
	return startMover(t, "-cert", tlstest.File(t), "-in1", first+",movetls", "-in2", next+",movetls")
}

// dialTLS makes a connection with one handshake, which is not made again.
func (m *mover) dialTLS() *client { return m.dialTLSFrom("") }

func (m *mover) dialTLSFrom(ip string) *client {
	m.t.Helper()
	c := m.dialFrom(ip)
	over := tls.Client(c.Conn, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13, NextProtos: []string{"http/1.1"}})
	if err := over.Handshake(); err != nil {
		m.t.Fatal(err)
	}
	return &client{Conn: over, r: bufio.NewReaderSize(over, 512), t: m.t}
}

// TestMoveOverTLS: a connection with one handshake is served by each of ten processes in
// turn.
func TestMoveOverTLS(t *testing.T) {
	m := startTLSMover(t)
	clients := []*client{m.dialTLS(), m.dialTLS(), m.dialTLS()}
	pid := m.Pid()
	for _, c := range clients[:2] { // nothing is asked yet over the third
		c.mustAsk(t, pid)
	}
	for range 10 {
		old := pid
		pid = m.upgradeOf(pid)
		if moved, finished, cut := m.drained(); moved != 3 || finished != 0 || cut != 0 {
			t.Fatalf("process %d: %d connections moved, %d finished, %d cut off; want 3, 0, 0", old, moved, finished, cut)
		}
		for _, c := range clients[:1] { // the second one is idle all the time
			c.mustAsk(t, pid)
		}
		m.WaitGone(old)
	}
	for _, c := range clients {
		c.mustAsk(t, pid)
	}
}

// TestMoveOverTLSListener: a listener of the program that does TLS is seen through, in the
// old process and the new one, whatever the other one has.
func TestMoveOverTLSListener(t *testing.T) {
	for _, c := range [][2]string{{"tlslistener", "tlslistener"}, {"tls", "tlslistener"}, {"tlslistener", "tls"}} {
		t.Run(c[0]+" to "+c[1], func(t *testing.T) {
			m := startTLSMoverBy(t, c[0], c[1])
			asked, idle := m.dialTLS(), m.dialTLS()
			pid := m.Pid()
			asked.mustAsk(t, pid)
			for range 3 {
				old := pid
				pid = m.upgradeOf(pid)
				if moved, finished, cut := m.drained(); moved != 2 || finished != 0 || cut != 0 {
					t.Fatalf("process %d: %d connections moved, %d finished, %d cut off; want 2, 0, 0", old, moved, finished, cut)
				}
				asked.mustAsk(t, pid)
				m.WaitGone(old)
			}
			idle.mustAsk(t, pid)
			m.dialTLS().mustAsk(t, pid)
		})
	}
}

// TestMoveOverTLSInFIPSMode: nothing moves there, one line of each old process says so, and
// the connection is served to its next request.
func TestMoveOverTLSInFIPSMode(t *testing.T) {
	args := []string{"-cert", tlstest.File(t), "-in1", "tls,movetls", "-in2", "tls,movetls", "-idlegrace", "10ms"}
	m := startMoverAs(t, proctest.Command{Path: proctest.Build(t, moveServerPackage), Args: args, Env: []string{"GODEBUG=fips140=on"}})
	c := m.dialTLS()
	c.mustAsk(t, m.Pid())
	m.upgrade()
	m.WaitLine(`msg="grace: no TLS connection is moved, they are finished here" .*FIPS`)
	if a := c.mustAsk(t, m.Pid()); !a.closes {
		t.Error("the answer does not say Connection: close")
	}
	if moved, finished, cut := m.drained(); moved != 0 || finished != 1 || cut != 0 {
		t.Errorf("%d connections moved, %d finished, %d cut off; want 0, 1, 0", moved, finished, cut)
	}
}

// TestMoveOpenSSL: a client of OpenSSL's stays connected over ten upgrades, and changes its
// keys before and after each, by itself and so that the server has to.
func TestMoveOpenSSL(t *testing.T) {
	openssl := needTool(t, "openssl", "openssl")
	m := startTLSMover(t)
	cmd := exec.CommandContext(t.Context(), openssl, "s_client", "-connect", m.addr, "-servername", "grace", "-tls1_3", "-alpn", "http/1.1", "-no_ign_eof")
	out := &logtest.Buffer{}
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = out, out, proctest.Limit
	in, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer in.Close()
	await := func(text string, n int) {
		t.Helper()
		if !proctest.Poll(proctest.Limit, func() bool { return strings.Count(out.String(), text) >= n }) {
			t.Fatalf("openssl has not printed %q %d times:\n%s", text, n, out)
		}
	}
	await("Verify return code", 1) // lines are read from now on
	updates := 0
	ask := func(pid int) {
		t.Helper()
		for _, command := range []string{"K", "k"} {
			updates++
			io.WriteString(in, command+"\n")
			await("KEYUPDATE", updates)
		}
		io.WriteString(in, "GET / HTTP/1.1\r\nHost: grace\r\n\r\n")
		await(fmt.Sprintf("\n%d ", pid), 1)
	}
	pid := m.Pid()
	ask(pid)
	for range 10 {
		old := pid
		pid = m.upgradeOf(pid)
		if moved, finished, cut := m.drained(); moved != 1 || finished != 0 || cut != 0 {
			t.Fatalf("%d connections moved, %d finished, %d cut off; want 1, 0, 0", moved, finished, cut)
		}
		ask(pid)
		m.WaitGone(old)
	}
	if n := strings.Count(out.String(), "CONNECTED("); n != 1 {
		t.Errorf("openssl has connected %d times", n)
	}
}
