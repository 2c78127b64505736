//go:build linux

package integration_test

import (
	"bufio"
	"crypto/tls"
	"testing"
)

// startTLSMover starts a moveserver whose TLS connections move.
func startTLSMover(t testing.TB, args ...string) *mover {
	t.Helper()
	return startMover(t, append([]string{"-cert", certificate(t), "-in1", "tls,movetls", "-in2", "tls,movetls"}, args...)...)
}

// dialTLS makes a connection with one handshake, which is not made again.
func (m *mover) dialTLS() *client {
	m.t.Helper()
	c := m.dial()
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
