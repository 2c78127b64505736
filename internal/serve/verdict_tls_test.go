//go:build linux

package serve

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"testing"

	"github.com/julofinance/grace/v3/internal/sockets"
	"github.com/julofinance/grace/v3/internal/testing/tlstest"
	"github.com/julofinance/grace/v3/internal/testing/wait"
	"golang.org/x/sys/unix"
)

// The new process has received a connection and taken it, and its client sends a request,
// and asks for new keys, which TLS itself has to answer: nothing is written to the client
// before the old process has said whose the connection is, since two that write would use
// the same number twice.
func TestNewWritesNothingBeforeTheVerdict(t *testing.T) {
	for side, give := range map[string]func(p *couple, took, refused []uint32){
		"new": func(p *couple, took, refused []uint32) { p.mover.OnTook(took, refused) },
		"old": func(p *couple, _, _ []uint32) { p.mover.Stop() },
	} {
		ways(t, "it is for the "+side+" one", func(t *testing.T, byListener bool) {
			w := newTLSWorld(t)
			w.byListener = byListener
			var keys bytes.Buffer
			w.client.KeyLogWriter = &keys
			p := newCouple(t, w.over(saysSide)) // neither reads its channel
			c := tls.Client(p.dial(), w.client) // that of askTLS would read what is not to come
			r := bufio.NewReader(c)
			wantAnswer(t, c, r, "", "old")
			wait.For(t, p.old.seen, "the connection")
			p.drain()
			p.take()
			m, err := p.old.ch.Next()
			if err != nil || m.Type != sockets.MsgTook {
				t.Fatalf("message %q, error %v; want one that it is taken", m.Type, err)
			}
			took, refused, err := sockets.DecodeIDs(m.Payload)
			if len(took) != 1 || len(refused) != 0 || err != nil {
				t.Fatalf("%d connections are taken, %d refused, error %v; want 1, 0", len(took), len(refused), err)
			}
			req, err := http.NewRequest("GET", "http://a.test/", nil)
			if err == nil {
				err = req.Write(c)
			}
			if err != nil {
				t.Fatal(err)
			}
			if suite := c.ConnectionState().CipherSuite; suite != tls.TLS_AES_128_GCM_SHA256 {
				t.Skipf("%s was agreed on: without instructions for AES crypto/tls prefers another one", tls.CipherSuiteName(suite))
			}
			by, ok := tlstest.KeysOf("CLIENT_TRAFFIC_SECRET_0", keys.String())
			if !ok {
				t.Fatalf("the client's secret is not in %q", &keys)
			}
			w.client.KeyLogWriter = nil
			send := func(record []byte) { // the client itself sends no more
				if _, err := c.NetConn().Write(record); err != nil {
					t.Fatal(err)
				}
			}
			send(by.Seal(2, tlstest.HandshakeRecord, tlstest.KeyUpdate)) // after two requests
			for range 20 {                                               // it serves others meanwhile
				other := p.dialTLS(w.client)
				wantAnswer(t, other, bufio.NewReader(other), "", "new")
				other.Close()
			}
			if n := pending(t, c.NetConn()); n != 0 {
				t.Errorf("%d bytes have come before the verdict", n)
			}
			p.runNew()
			give(p, took, refused)
			resp, err := http.ReadResponse(r, req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if b, err := io.ReadAll(resp.Body); string(b) != side || err != nil {
				t.Errorf("%q answers, error %v; want %s", b, err, side)
			}
			if side == "new" { // the old one says Connection: close
				send(by.Next().Seal(0, tlstest.AlertRecord, []byte{1, 0})) // close_notify
			}
			if _, err := r.ReadByte(); err != io.EOF {
				t.Errorf("after the answer: %v, want %v", err, io.EOF)
			}
		})
	}
}

// pending returns how many bytes have come that nothing has read.
func pending(t *testing.T, c net.Conn) (n int) {
	t.Helper()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if cerr := raw.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.TIOCINQ) }); err != nil || cerr != nil {
		t.Fatal(err, cerr)
	}
	return n
}
