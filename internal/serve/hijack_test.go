//go:build linux

package serve

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/sockets"
	"github.com/julofinance/grace/v3/internal/testing/tlstest"
	"github.com/julofinance/grace/v3/internal/testing/wait"
)

// A wrapListener wraps each connection.
type wrapListener struct {
	net.Listener
	wrap func(net.Conn) net.Conn
}

func (l wrapListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return l.wrap(c), nil
}

// These are a user's own connections. The second says that it has done TLS, as
// one behind a proxy might.
type (
	userConn struct{ net.Conn }
	tlsSayer struct{ net.Conn }
)

func (tlsSayer) ConnectionState() tls.ConnectionState { return tls.ConnectionState{ServerName: "said"} }

// hijacks answers with what Hijack has given: the type of the connection, what
// is buffered, and what comes after that from the connection itself.
func hijacks(w http.ResponseWriter, r *http.Request) {
	if r.RequestURI != "/hijack" {
		io.WriteString(w, "answer")
		return
	}
	c, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(err)
	}
	defer c.Close()
	said := ""
	if r.TLS != nil {
		said = fmt.Sprint("TLS with ", r.TLS.ServerName)
	}
	buffered := make([]byte, rw.Reader.Buffered())
	io.ReadFull(rw, buffered)
	fmt.Fprintf(rw, "%T %s buffered=%q\n", c, said, buffered)
	rw.Flush()
	late := make([]byte, len("late"))
	_, err = io.ReadFull(c, late)
	fmt.Fprintf(c, "from the connection: %q, %v\n", late, err)
}

// TestHijackIsLikeNetHTTP: a handler that takes its connection over gets the very
// one that it would get without us, and all that the client has sent: before and
// after a move, and while the process ends.
func TestHijackIsLikeNetHTTP(t *testing.T) {
	cert, trusting := tlstest.Certificate(t)
	config := &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"http/1.1"}}
	wrapped := func(wrap func(net.Conn) net.Conn) func(net.Listener) net.Listener {
		return func(ln net.Listener) net.Listener { return wrapListener{ln, wrap} }
	}
	user := wrapped(func(c net.Conn) net.Conn { return &userConn{c} })
	says := wrapped(func(c net.Conn) net.Conn { return &tlsSayer{c} })
	overTLS := func(ln net.Listener) net.Listener { return tls.NewListener(ln, config) }
	for _, c := range []struct {
		name  string
		wrap  func(net.Listener) net.Listener
		tls   bool
		moves bool // what the old process has is moved to it
	}{
		{name: "plain", moves: true},
		{name: "wrapped", wrap: user, moves: true},
		{name: "by value", wrap: wrapped(func(c net.Conn) net.Conn { return userConn{c} }), moves: true},
		{name: "says that it is TLS", wrap: says, moves: true},
		{name: "TLS", wrap: overTLS, tls: true},
		{name: "TLS of a wrapper", wrap: func(ln net.Listener) net.Listener { return overTLS(user(ln)) }, tls: true},
		{name: "a wrapper of TLS", wrap: func(ln net.Listener) net.Listener { return user(overTLS(ln)) }, tls: true},
	} {
		for _, h2c := range []bool{false, true} {
			configure := func(srv *http.Server) {
				srv.Protocols = new(http.Protocols)
				srv.Protocols.SetHTTP1(true)
				srv.Protocols.SetUnencryptedHTTP2(h2c)
			}
			side := func(wrap func(net.Listener) net.Listener) http.Handler {
				return configured{Handler: http.HandlerFunc(hijacks), configure: configure, wrap: wrap}
			}
			dial := func(t *testing.T, addr string) net.Conn {
				conn := dialSolo(t, addr)
				if c.tls {
					config := trusting.Clone()
					config.ServerName = "127.0.0.1"
					conn = tls.Client(conn, config)
				}
				return conn
			}
			byItself := func(t *testing.T, asks int) string {
				ln, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				addr := ln.Addr().String()
				if c.wrap != nil {
					ln = c.wrap(ln)
				}
				srv := &http.Server{Handler: http.HandlerFunc(hijacks)}
				configure(srv)
				go srv.Serve(ln)
				defer srv.Close()
				conn := dial(t, addr)
				for range asks {
					askPlain(t, conn)
				}
				return askHijack(t, conn)
			}
			t.Run(fmt.Sprintf("%s, h2c %v", c.name, h2c), func(t *testing.T) {
				t.Parallel()
				want := byItself(t, 0)
				s := newSide(t, nil, 0, side(c.wrap))
				s.open()
				if got := askHijack(t, dial(t, s.l.Addr().String())); got != want {
					t.Errorf("a new connection: got\n%s\nnet/http by itself\n%s", got, want)
				}
				conn := dial(t, s.l.Addr().String())
				askPlain(t, conn)
				want = byItself(t, 1)
				s.http.draining.Store(NewDrain(nil))
				if got := askHijack(t, conn); got != want {
					t.Errorf("while the process ends: got\n%s\nnet/http by itself\n%s", got, want)
				}
				if !c.moves {
					return
				}
				p := newCouple(t, func(name string) http.Handler {
					if name == "old" {
						return side(nil)
					}
					return side(c.wrap)
				})
				p.new.l.Take(sockets.ProtocolHTTP1) // as if a connection had proven it
				p.mover.Learn(p.new.u.Socks.Claims())
				p.runOld()
				p.runNew()
				conn = p.dial()
				askPlain(t, conn)
				_, done := p.drain()
				wait.For(t, done, "the old process to end")
				if n := p.mover.Count(); n != 1 {
					t.Fatalf("%d connections were moved, want 1", n)
				}
				if got := askHijack(t, conn); got != want {
					t.Errorf("a moved connection: got\n%s\nnet/http by itself\n%s", got, want)
				}
			})
		}
	}
}

func askPlain(t *testing.T, c net.Conn) {
	t.Helper()
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(resp.Body); err != nil || string(b) != "answer" {
		t.Fatalf("answered %q, %v", b, err)
	}
}

func askHijack(t *testing.T, c net.Conn) string {
	t.Helper()
	c.SetDeadline(time.Now().Add(wait.Limit))
	io.WriteString(c, "GET /hijack HTTP/1.1\r\nHost: a\r\n\r\nearly")
	r := bufio.NewReader(c)
	first, err := r.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(c, "late")
	second, err := r.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(first, "sockets.TCPConn", "net.TCPConn") + second
}
