//go:build linux

package serve

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	"github.com/julofinance/grace/v3/internal/sockets"
	"github.com/julofinance/grace/v3/internal/testing/tlstest"
)

// A lineConn reads a line before the connection's own bytes.
type lineConn struct {
	net.Conn
	r    *bufio.Reader
	once sync.Once
}

func newLineConn(c net.Conn) net.Conn { return &lineConn{Conn: c, r: bufio.NewReader(c)} }

func (c *lineConn) Read(p []byte) (int, error) {
	c.once.Do(func() { c.r.ReadString('\n') })
	return c.r.Read(p)
}

// An elsewhereConn has addresses of its own.
type elsewhereConn struct{ net.Conn }

func (elsewhereConn) LocalAddr() net.Addr  { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 80} }
func (elsewhereConn) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 2), Port: 80} }

// TestDoubtsEnd: what a wrapper does to a listener is looked at in the first request,
// and never again: not if it does nothing, not if it does TLS, and not for ever if it
// can't be told. From then on neither a request nor a new connection costs anything.
func TestDoubtsEnd(t *testing.T) {
	cert, trusting := tlstest.Certificate(t)
	trusting = trusting.Clone()
	trusting.ServerName = "127.0.0.1"
	config := &tls.Config{Certificates: []tls.Certificate{cert}}
	wraps := func(wrap func(net.Conn) net.Conn) func(net.Listener) net.Listener {
		return func(ln net.Listener) net.Listener { return wrapListener{ln, wrap} }
	}
	plain := func(c net.Conn) net.Conn { return c }
	for _, c := range []struct {
		name   string
		wrap   func(net.Listener) net.Listener
		client func(net.Conn) net.Conn
		first  string // that the client sends
		asks   int    // after which all is known
		takes  string
	}{
		{"a limit", wraps(func(c net.Conn) net.Conn { return &userConn{c} }), plain, "", 1, sockets.ProtocolHTTP1},
		{"TLS that is hidden", wraps(func(c net.Conn) net.Conn { return &userConn{tls.Server(c, config)} }),
			func(c net.Conn) net.Conn { return tls.Client(c, trusting) }, "", 1, ""},
		{"a line before", wraps(newLineConn), plain, "PROXY UNKNOWN\r\n", 1, ""},
		{"addresses of its own", wraps(func(c net.Conn) net.Conn { return &elsewhereConn{c} }), plain, "", vainProofs, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSide(t, nil, 0, configured{
				Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
					if w != nil {
						io.WriteString(w, "answer")
					}
				}),
				wrap: c.wrap, configure: func(*http.Server) {},
			})
			s.open()
			raw := dialSolo(t, s.l.Addr().String())
			io.WriteString(raw, c.first)
			conn := c.client(raw)
			if !s.http.doubts.Load() {
				t.Fatal("there are no doubts before the first request")
			}
			for range c.asks {
				askPlain(t, conn)
			}
			if s.http.doubts.Load() {
				t.Errorf("after %d requests there are doubts still", c.asks)
			}
			if got := s.l.Protocol(); got != c.takes {
				t.Errorf("the server takes moved connections of %q, want %q", got, c.takes)
			}
			askPlain(t, c.client(func() net.Conn {
				raw := dialSolo(t, s.l.Addr().String())
				io.WriteString(raw, c.first)
				return raw
			}()))
			tracks := s.l.Live.All()
			if last := tracks[len(tracks)-1]; last.First != nil {
				t.Error("a new connection keeps its first bytes still")
			}
			r := httptest.NewRequest("GET", "/", nil)
			r = r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, tracks[0].Inner.LocalAddr()))
			if n := testing.AllocsPerRun(100, func() { s.http.ServeHTTP(nil, r) }); n != 0 {
				t.Errorf("%v allocations in each request", n)
			}
		})
	}
}

// TestFirstRequestIsJudged: only what proves something counts.
func TestFirstRequestIsJudged(t *testing.T) {
	for _, c := range []struct {
		first, line string
		want        verdict
	}{
		{"GET / HTTP/1.1\r\n", "GET / HTTP/1.", proven},
		{"GET /a/long/path", "GET /a/long/path/that/goes/on HTTP/1.", proven},
		{"GET /", "GET /x HTTP/1.", proven},
		{"GET", "GET / HTTP/1.", unproven},
		{"", "GET / HTTP/1.", unproven},
		{"\x16\x03\x01\x02\x00\x01", "GET / HTTP/1.", disproven},
		{"PROXY TCP4 192.0", "POST / HTTP/1.", disproven},
		{"GET /a HTTP/1.1", "GET /b HTTP/1.", disproven},
		{"OPTIONS * HTTP/1", "GET / HTTP/1.", unproven},
		{"\r\nGET / HTTP/1.1", "GET / HTTP/1.", unproven},
	} {
		t.Run(fmt.Sprintf("%.5q %s", c.first, c.line), func(t *testing.T) {
			tr := &sockets.Track{Detour: &sockets.Detour{First: []byte(c.first)}}
			if got := beganWith(tr, c.line); got != c.want {
				t.Errorf("%q after %q: got %v, want %v", c.line, c.first, got, c.want)
			}
			if got := beganWith(tr, "GET /second HTTP/1."); got != unproven {
				t.Errorf("a second request is judged too: %v", got)
			}
		})
	}
}
