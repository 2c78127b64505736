//go:build linux

package serve

import (
	"bufio"
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"io"
	"net"
	"net/http"
	"regexp"
	"testing"

	"github.com/julofinance/grace/v3/internal/sockets"
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
			by := sealerOf(t, c, keys.String())
			w.client.KeyLogWriter = nil
			by.seq = 2 // after two requests
			by.send(22, []byte{24, 0, 0, 1, 1})
			by.update()
			for range 20 { // it serves others meanwhile
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
				by.send(21, []byte{1, 0}) // close_notify, with the new key
			}
			if _, err := r.ReadByte(); err != io.EOF {
				t.Errorf("after the answer: %v, want %v", err, io.EOF)
			}
		})
	}
}

// A sealer sends records for a client of crypto/tls that it can't be made to send. The
// client itself sends no more then.
type sealer struct {
	t      *testing.T
	c      *tls.Conn
	secret []byte
	seq    uint64
}

// sealerOf has the client's secret from what KeyLogWriter was given.
func sealerOf(t *testing.T, c *tls.Conn, keys string) *sealer {
	t.Helper()
	if suite := c.ConnectionState().CipherSuite; suite != tls.TLS_AES_128_GCM_SHA256 {
		t.Skipf("%s was agreed on: without instructions for AES crypto/tls prefers another one", tls.CipherSuiteName(suite))
	}
	m := regexp.MustCompile(`CLIENT_TRAFFIC_SECRET_0 \w+ (\w+)`).FindStringSubmatch(keys)
	if m == nil {
		t.Fatalf("the client's secret is not in %q", keys)
	}
	secret, err := hex.DecodeString(m[1])
	if err != nil {
		t.Fatal(err)
	}
	return &sealer{t: t, c: c, secret: secret}
}

// derive is HKDF-Expand-Label of RFC 8446, section 7.1, without a context.
func (s *sealer) derive(label string, n int) []byte {
	s.t.Helper()
	label = "tls13 " + label
	info := append([]byte{0, byte(n), byte(len(label))}, label...)
	b, err := hkdf.Expand(sha256.New, s.secret, string(append(info, 0)), n)
	if err != nil {
		s.t.Fatal(err)
	}
	return b
}

// update goes on with the next secret.
func (s *sealer) update() { s.secret, s.seq = s.derive("traffic upd", sha256.Size), 0 }

// send sends a record of this type.
func (s *sealer) send(typ byte, content []byte) {
	s.t.Helper()
	block, err := aes.NewCipher(s.derive("key", 16))
	if err != nil {
		s.t.Fatal(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		s.t.Fatal(err)
	}
	nonce := s.derive("iv", aead.NonceSize())
	number := binary.BigEndian.AppendUint64(make([]byte, 4), s.seq)
	subtle.XORBytes(nonce, nonce, number)
	s.seq++
	head := []byte{23, 3, 3, 0, byte(len(content) + 1 + aead.Overhead())}
	if _, err := s.c.NetConn().Write(aead.Seal(head, nonce, append(content, typ), head)); err != nil {
		s.t.Fatal(err)
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
