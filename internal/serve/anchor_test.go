//go:build linux

package serve

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/testing/tlstest"
	"github.com/julofinance/grace/v3/internal/testing/wait"
)

// An ending is what becomes of a server, and of its clients, when the program ends
// it: net/http's server, or one that is given to us.
type ending struct {
	t      *testing.T
	srv    *http.Server
	addr   string
	tls    *tls.Config // of clients; nil without TLS
	called chan struct{}
	answer chan struct{} // lets handlers of /slow return
}

func newEnding(t *testing.T, overTLS, bound bool) (e *ending, wrap func(net.Listener) net.Listener) {
	cert, trusting := tlstest.Certificate(t)
	e = &ending{t: t, called: make(chan struct{}, 9), answer: make(chan struct{})}
	e.srv = &http.Server{Protocols: new(http.Protocols), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.RequestURI {
		case "/slow":
			e.called <- struct{}{}
			<-e.answer
		case "/hijack":
			hijacks(w, r)
			return
		}
		io.WriteString(w, "answer")
	})}
	e.srv.Protocols.SetHTTP1(true)
	e.srv.Protocols.SetHTTP2(true)
	e.srv.Protocols.SetUnencryptedHTTP2(true)
	if bound {
		e.srv.TLSNextProto = map[string]func(*http.Server, *tls.Conn, http.Handler){"x": nil}
	}
	if !overTLS {
		return e, nil
	}
	e.tls = trusting.Clone()
	e.tls.ServerName = "127.0.0.1"
	return e, func(ln net.Listener) net.Listener {
		return tls.NewListener(ln, &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"h2", "http/1.1"}})
	}
}

func (e *ending) dial(protos ...string) net.Conn {
	e.t.Helper()
	c := dialSolo(e.t, e.addr)
	if e.tls == nil {
		return c
	}
	config := e.tls.Clone()
	config.NextProtos = protos
	return tls.Client(c, config)
}

// slow asks, and says what the answer was.
func (e *ending) slow(http2 bool) <-chan string {
	e.t.Helper()
	tr := &http.Transport{TLSClientConfig: e.tls, Protocols: new(http.Protocols), DisableKeepAlives: false}
	scheme := "https"
	switch {
	case !http2:
		tr.Protocols.SetHTTP1(true)
	case e.tls == nil:
		tr.Protocols.SetUnencryptedHTTP2(true)
	default:
		tr.Protocols.SetHTTP2(true)
	}
	if e.tls == nil {
		scheme = "http"
	}
	got := make(chan string, 1)
	go func() {
		client := http.Client{Transport: tr, Timeout: wait.Limit}
		// A body that can't be sent twice: no second try.
		resp, err := client.Post(scheme+"://"+e.addr+"/slow", "text/plain", io.MultiReader(strings.NewReader("x")))
		if err == nil {
			_, err = io.Copy(io.Discard, resp.Body)
		}
		tr.CloseIdleConnections()
		switch {
		case err == nil:
			got <- resp.Proto + " " + resp.Status
		default:
			got <- "cut"
		}
	}()
	wait.For(e.t, e.called, "a request")
	return got
}

// run ends the server with end, and says what was seen.
func (e *ending) run(end func(context.Context) error, graceful bool, prepare func()) (seen []string) {
	t := e.t
	idle1 := e.dial("http/1.1")
	askPlain(t, idle1)
	idle2 := &rawHTTP2{t: t, c: e.dial("h2")}
	io.WriteString(idle2.c, preface+"\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
	idle2.in = bufio.NewReader(idle2.c)
	idle2.waitFrame(frameSettings)
	busy1, busy2 := e.slow(false), e.slow(true)
	prepare()
	ended := make(chan error, 1)
	go func() { ended <- end(t.Context()) }()
	note := func(what string, got any) { seen = append(seen, fmt.Sprint(what, ": ", got)) }
	isOver := func(c net.Conn) bool {
		_, err := io.Copy(io.Discard, c)
		var ne net.Error
		return err == nil || !(errors.As(err, &ne) && ne.Timeout())
	}
	note("idle HTTP/1 is over", isOver(idle1))
	note("idle HTTP/2 is over", isOver(idle2.c))
	if graceful {
		select {
		case err := <-ended:
			note("it waits", err)
			ended <- err
		case <-time.After(50 * time.Millisecond): // more than nothing: it is to be waiting
			note("it waits", true)
		}
		close(e.answer)
	}
	note("busy HTTP/1", wait.For(t, busy1, "busy HTTP/1"))
	note("busy HTTP/2", wait.For(t, busy2, "busy HTTP/2"))
	note("it returns", wait.For(t, ended, "the end"))
	if !graceful {
		close(e.answer)
	}
	return seen
}

// TestUserEnds: the program's own Shutdown and Close of a server end all its
// connections as net/http does, whichever copy has them: while it serves, during
// probation and the drain, and when a copy has taken its place.
func TestUserEnds(t *testing.T) {
	for _, overTLS := range []bool{false, true} {
		for _, bound := range []bool{false, true} {
			for _, how := range []string{"Shutdown", "Close"} {
				end := func(srv *http.Server) func(context.Context) error {
					if how == "Close" {
						return func(context.Context) error { return srv.Close() }
					}
					return srv.Shutdown
				}
				e, wrap := newEnding(t, overTLS, false)
				ln, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				e.addr = ln.Addr().String()
				if wrap != nil {
					ln = wrap(ln)
				}
				go e.srv.Serve(ln)
				want := e.run(end(e.srv), how == "Shutdown", func() {})
				for _, moment := range []string{"serving", "probation", "drain", "after a roll back"} {
					t.Run(fmt.Sprintf("%s, %s, TLS %v, bound %v", how, moment, overTLS, bound), func(t *testing.T) {
						t.Parallel()
						e, wrap := newEnding(t, overTLS, bound)
						s := newSide(t, nil, 0, configured{Handler: e.srv.Handler, wrap: wrap, configure: func(srv *http.Server) {
							srv.Protocols, srv.TLSNextProto = e.srv.Protocols, e.srv.TLSNextProto
						}}, idle(2*wait.Limit))
						e.srv, e.addr = s.srv, s.l.Addr().String()
						s.open()
						handOver := func() {
							s.u.Socks.Yield(s.u.Socks.Snapshot(), []int{0})
						}
						d := NewDrain(nil)
						drained := make(chan Report, 1)
						drain := func() {
							handOver()
							s.u.Socks.EndAccept()
							go func() { drained <- s.http.Drain(d) }()
							s.await("the drain", s.http.ends)
						}
						if moment == "after a roll back" {
							hijacked := e.dial("http/1.1")
							io.WriteString(hijacked, "GET /hijack HTTP/1.1\r\nHost: a\r\n\r\n")
							if _, err := bufio.NewReader(hijacked).ReadString('\n'); err != nil {
								t.Fatal(err)
							}
							drain()
							s.await("Shutdown", func() bool { return s.http.userShut.Load() })
							d.cancel()
							wait.For(t, drained, "the drain that was called off")
							s.http.Resume()
							s.u.Socks.ReopenGates()
						}
						got := e.run(end(e.srv), how == "Shutdown", func() {
							switch moment {
							case "probation":
								handOver()
							case "drain":
								drain()
							}
						})
						d.Hurry()
						if !slices.Equal(got, want) {
							t.Errorf("got\n\t%s\nnet/http by itself\n\t%s", strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
						}
					})
				}
			}
		}
	}
}

func (s *side) await(what string, is func() bool) {
	if !wait.Poll(is) {
		panic("waited in vain for " + what)
	}
}
