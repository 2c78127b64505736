//go:build unix

package serve

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/julofinance/grace/v3/internal/sockets"
	"github.com/julofinance/grace/v3/internal/testing/wait"
)

// TestClientsThatStop: whatever a client has begun, if it is no request that the
// handler has, it keeps the process from ending for the idle grace only.
func TestClientsThatStop(t *testing.T) {
	const get = "GET / HTTP/1.1\r\nHost: test\r\n\r\n"
	plain := func(ln net.Listener) net.Listener { return ln }
	hidden := func(ln net.Listener) net.Listener { return headerListener{ln} }
	foreign := func(net.Listener) net.Listener {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ln.Close() })
		return ln
	}
	config := testTLS(t)
	for _, phase := range []struct {
		name    string
		send    string
		answers int
	}{
		{"connected and silent", "", 0},
		{"three bytes", "GET", 0},
		{"header half sent", "GET / HTTP/1.1\r\nHo", 0},
		{"idle", get, 1},
		{"half of the next header", get + "GET / HTTP/1.1\r\n", 1},
		{"between pipelined requests", get + get + get + "G", 3},
	} {
		for how, wrap := range map[string]func(net.Listener) net.Listener{"plain": plain, "TLS": plain, "PROXY": hidden, "foreign": foreign} {
			t.Run(how+"/"+phase.name, func(t *testing.T) {
				t.Parallel()
				u, ln := newProcess(t, cutsOffAfter(time.Hour), idle(50*time.Millisecond))
				arrived := make(chan struct{}, 9)
				srv := &http.Server{Handler: http.NotFoundHandler(), ConnState: func(_ net.Conn, s http.ConnState) {
					if s == http.StateNew {
						arrived <- struct{}{}
					}
				}}
				ln = wrap(ln)
				var execute func() error
				if how == "TLS" {
					srv.TLSConfig = config.Clone()
					execute = u.HTTPS(srv, ln, "", "")
				} else {
					execute = u.HTTP(srv, ln)
				}
				u.run(t, execute)
				c := dialSolo(t, ln.Addr().String())
				wait.For(t, arrived, "the connection")
				switch how {
				case "TLS":
					s := tls.Client(c, &tls.Config{InsecureSkipVerify: true})
					if err := s.Handshake(); err != nil {
						t.Fatal(err)
					}
					c = s
				case "PROXY":
					io.WriteString(c, "x")
				}
				io.WriteString(c, phase.send)
				r := bufio.NewReader(c)
				for range phase.answers {
					resp, err := http.ReadResponse(r, nil)
					if err != nil {
						t.Fatal(err)
					}
					io.Copy(io.Discard, resp.Body)
				}
				u.askStop()
				wait.For(t, u.Done(), "Done")
			})
		}
	}
}

// TestClientsThatStopInTheHandshake: the same, of TLS.
func TestClientsThatStopInTheHandshake(t *testing.T) {
	config := testTLS(t)
	for _, send := range []string{"", "\x16\x03\x01", "\x16\x03\x01\x02\x00\x01"} {
		u, ln := newProcess(t, cutsOffAfter(time.Hour), idle(50*time.Millisecond))
		execute := u.HTTPS(&http.Server{ErrorLog: log.New(io.Discard, "", 0), TLSConfig: config.Clone()}, ln, "", "")
		u.run(t, execute)
		c := dialSolo(t, ln.Addr().String())
		io.WriteString(c, send)
		u.askStop()
		wait.For(t, u.Done(), fmt.Sprintf("Done, after %q", send))
	}
}

// TestBound: while the process wants to end, with a process that takes the connection
// or without, a client may wait for the grace between two bytes of a header, and for as
// long as it likes once the handler has the request.
func TestBound(t *testing.T) {
	const grace = 5 * time.Second
	for _, test := range []struct {
		name  string
		steps []step
		want  string // the last that the client gets, and when
	}{
		{"stops in the header", []step{{time.Second, "T / HT"}}, "6s: "},
		{"a slow header", []step{{4 * time.Second, "T / HT"}, {4 * time.Second, "TP/1.1\r\nHost: a\r\n\r\n"}}, "8s: "},
		{"a slow body", []step{{time.Second, "T / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\na"}, {time.Hour, "b"}}, "1h0m1s: "},
		{"a slow handler", []step{{0, "T / HTTP/1.1\r\nHost: a\r\nWait: 1h\r\n\r\n"}}, "1h0m0s: "},
	} {
		for _, how := range []string{"no process takes it", "another process takes it"} {
			var got transcript
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(func(*http.Server) {})
				defer w.end()
				got.begun = time.Now()
				go got.receive(w.client)
				w.send([]step{{0, "GE"}})
				synctest.Wait()
				if how == "no process takes it" {
					w.conn.Track.Finish(grace)
				} else {
					w.conn.Track.Offer(&sockets.Mover{Grace: grace})
				}
				w.send(test.steps)
				time.Sleep(2 * time.Hour)
				synctest.Wait()
			})
			s := got.String()
			if test.name != "stops in the header" && !strings.Contains(s, "context: <nil>") {
				t.Errorf("%s, %s: got\n%swant an answer to a request that nothing has ended", test.name, how, s)
			}
			if !strings.HasPrefix(s, test.want) {
				t.Errorf("%s, %s: got\n%swant something at %s first", test.name, how, s, test.want)
			}
		}
	}
}

// testTLS has a certificate.
func testTLS(t *testing.T) *tls.Config {
	s := httptest.NewUnstartedServer(nil)
	s.StartTLS()
	defer s.Close()
	return &tls.Config{Certificates: s.TLS.Certificates}
}
