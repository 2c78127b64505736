package tls13

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"math/big"
	"net"
	"os"
	"sync"
	"testing"
	"time"
)

// patience bounds each wait of a test.
const patience = time.Minute

// An authority signs certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t testing.TB, name string) *authority {
	t.Helper()
	a := &authority{key: newKey(t), pool: x509.NewCertPool()}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	a.cert = parse(t, sign(t, template, template, &a.key.PublicKey, a.key))
	a.pool.AddCert(a.cert)
	return a
}

// issue returns a certificate for these names; without any, one for a client.
func (a *authority) issue(t testing.TB, names ...string) tls.Certificate {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "leaf"}, DNSNames: names,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if len(names) == 0 {
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	}
	return tls.Certificate{Certificate: [][]byte{sign(t, template, a.cert, &key.PublicKey, a.key)}, PrivateKey: key}
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	return key
}

func sign(t testing.TB, template, parent *x509.Certificate, pub *ecdsa.PublicKey, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, pub, key)
	check(t, err)
	return der
}

func parse(t testing.TB, der []byte) *x509.Certificate {
	t.Helper()
	c, err := x509.ParseCertificate(der)
	check(t, err)
	return c
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func get[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		check(t, err)
		return v
	}
}

const testName = "www.example.test"

var world = sync.OnceValue(func() *authority { return newAuthority(testingTB{}, "the authority") })

// testingTB lets helpers be used outside of a test; what fails panics.
type testingTB struct{ testing.TB }

func (testingTB) Helper()           {}
func (testingTB) Fatal(args ...any) { panic(args) }

var worldCert = sync.OnceValue(func() tls.Certificate { return world().issue(testingTB{}, testName) })

func serverConfig() *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{worldCert()}, NextProtos: []string{protoHTTP1}}
}

func clientConfig() *tls.Config {
	return &tls.Config{RootCAs: world().pool, ServerName: testName, NextProtos: []string{protoHTTP1}}
}

// A couple is a client in crypto/tls and its server over TCP. below is the connection
// under server, and under the Conns that follow it; a fence is in between.
type couple struct {
	client *tls.Conn
	server *tls.Conn
	fence  *fence
	below  *tap
}

// A tap is a connection that records what is written to it, and that can be held up.
type tap struct {
	net.Conn
	mu    sync.Mutex
	wrote []byte
}

func (p *tap) Write(b []byte) (int, error) {
	n, err := p.Conn.Write(b)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.wrote = append(p.wrote, b[:n]...)
	return n, err
}

// written returns all that was written so far.
func (p *tap) written() []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	return bytes.Clone(p.wrote)
}

func tcpPair(t testing.TB) (client, server net.Conn) {
	t.Helper()
	ln := get(net.Listen("tcp", "127.0.0.1:0"))(t)
	defer ln.Close()
	client = get(net.Dial("tcp", ln.Addr().String()))(t)
	server = get(ln.Accept())(t)
	t.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}

// connect shakes hands.
func connect(t testing.TB, clientConf, serverConf *tls.Config) *couple {
	t.Helper()
	c, s := tcpPair(t)
	p := &couple{below: &tap{Conn: s}}
	p.fence = &fence{Conn: p.below}
	p.client, p.server = tls.Client(c, clientConf), tls.Server(p.fence, serverConf)
	for _, e := range []net.Conn{c, s} {
		e.SetDeadline(time.Now().Add(patience))
	}
	done := make(chan error, 1)
	go func() { done <- p.client.Handshake() }()
	check(t, p.server.Handshake())
	check(t, <-done)
	return p
}

// across takes a State to another process: a copy of s, which is wiped.
func across(t testing.TB, s *State) State {
	t.Helper()
	b := get(s.Encode())(t)
	s.Wipe()
	over := get(Decode(b))(t)
	clear(b)
	return over
}

// extract takes the State out of the *tls.Conn.
func (p *couple) extract(t testing.TB) State {
	t.Helper()
	s := get(Extract(p.server))(t)
	p.fence.shut.Store(true)
	return s
}

// resume makes a Conn of s, as another process does.
func resume(t testing.TB, below net.Conn, s State) *Conn {
	t.Helper()
	s = across(t, &s)
	cs := get(s.ConnectionState())(t)
	return get(New(below, &s, cs))(t)
}

// move takes the connection to another process once.
func (p *couple) move(t testing.TB) *Conn {
	t.Helper()
	return resume(t, p.below, p.extract(t))
}

// again moves c once more.
func again(t testing.TB, c *Conn) *Conn {
	t.Helper()
	return resume(t, c.conn, get(c.Extract())(t))
}

// say writes text into one end, and sees that it comes out at the other.
func say(t testing.TB, from io.Writer, to io.Reader, text string) {
	t.Helper()
	sent := make(chan error, 1)
	go func() {
		_, err := io.WriteString(from, text)
		sent <- err
	}()
	b := make([]byte, len(text))
	if _, err := io.ReadFull(to, b); err != nil {
		t.Fatalf("reading what was written: %v", err)
	}
	if string(b) != text {
		t.Fatalf("%.40q was written, %.40q came out", text, b)
	}
	check(t, <-sent)
}

// talk says something both ways.
func talk(t testing.TB, client, server net.Conn) {
	t.Helper()
	say(t, client, server, "from the client")
	say(t, server, client, "from the server")
}

// A script is a connection of which the test writes the client's side: Read returns
// what was fed, and times out when there is no more. It is not safe for concurrent use.
type script struct {
	in  bytes.Buffer
	out bytes.Buffer
	end error // instead of the timeout
}

func (s *script) Read(p []byte) (int, error) {
	if s.in.Len() > 0 {
		return s.in.Read(p)
	}
	if s.end != nil {
		return 0, s.end
	}
	return 0, os.ErrDeadlineExceeded
}

func (s *script) Write(p []byte) (int, error)      { return s.out.Write(p) }
func (s *script) Close() error                     { return nil }
func (s *script) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (s *script) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (s *script) SetDeadline(time.Time) error      { return nil }
func (s *script) SetReadDeadline(time.Time) error  { return nil }
func (s *script) SetWriteDeadline(time.Time) error { return nil }

// A swap is a connection that can be exchanged for another.
type swap struct{ net.Conn }

// A peer seals what a client would.
type peer struct{ half }

// record returns the record of a type with padding behind.
func (p *peer) record(t testing.TB, typ byte, data []byte, padding int) []byte {
	t.Helper()
	check(t, p.useNonce())
	inner := append(append(bytes.Clone(data), typ), make([]byte, padding)...)
	return p.sealed(recordData, inner)
}

// sealed seals with the nonce that was made last, whatever it may be.
func (p *peer) sealed(outer byte, inner []byte) []byte {
	n := len(inner) + tagLen
	header := []byte{outer, 3, 3, byte(n >> 8), byte(n)}
	return p.aead.Seal(header, p.nonce[:], inner, header)
}

// A scene is a server in crypto/tls and one of ours, with the same keys and in the
// same state, each with a script; client seals what it would send.
type scene struct {
	oracle      *tls.Conn
	oracleWire  *script
	ours        *Conn
	oursWire    *script
	client      *peer
	serverFirst half // the keys of the server at the beginning
}

func newScene(t testing.TB) *scene {
	t.Helper()
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	for _, c := range []net.Conn{near, far} {
		c.SetDeadline(time.Now().Add(patience))
	}
	below := &swap{near}
	conf := serverConfig()
	conf.SessionTicketsDisabled, conf.DynamicRecordSizingDisabled = true, true
	clientConf := clientConfig()
	clientConf.CurvePreferences = []tls.CurveID{tls.X25519}
	client := tls.Client(far, clientConf)
	done := make(chan error, 1)
	go func() { done <- client.Handshake() }()
	sc := &scene{oracle: tls.Server(below, conf), oracleWire: &script{}, oursWire: &script{}}
	check(t, sc.oracle.Handshake())
	check(t, <-done)
	s := get(Extract(sc.oracle))(t)
	below.Conn = sc.oracleWire
	suite := get(suiteOf(s.Suite))(t)
	sc.client = &peer{half{suite: suite}}
	check(t, sc.client.set(bytes.Clone(s.In.Secret), s.In.Seq))
	sc.serverFirst.suite = suite
	check(t, sc.serverFirst.set(bytes.Clone(s.Out.Secret), s.Out.Seq))
	sc.ours = sc.conn(t, s)
	return sc
}

// conn makes a Conn that sends records of full size at once, as the oracle does.
func (sc *scene) conn(t testing.TB, s State) *Conn {
	c := resume(t, sc.oursWire, s)
	c.out.bytes = rampBytes
	return c
}

// feed gives both servers the same bytes.
func (sc *scene) feed(b []byte) {
	sc.oracleWire.in.Write(b)
	sc.oursWire.in.Write(b)
}

// drain reads until an error comes.
func drain(c net.Conn, size int) (all []byte, err error) {
	b := make([]byte, size)
	for {
		n, err := c.Read(b)
		all = append(all, b[:n]...)
		if err != nil {
			return all, err
		}
	}
}
