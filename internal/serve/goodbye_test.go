//go:build unix

package serve

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/testing/tlstest"
	"github.com/julofinance/grace/v3/internal/testing/wait"
)

// serveDraining serves srv while the process drains, but accepts still; by HTTPS if it has a
// TLSConfig.
func serveDraining(t *testing.T, srv *http.Server) (u *solo, s *httpServer, addr string) {
	t.Helper()
	u, ln := newProcess(t)
	execute := u.HTTP(srv, ln)
	if srv.TLSConfig != nil {
		execute = u.HTTPS(srv, ln, "", "")
	}
	served := u.run(t, execute)
	s = u.httpServer(srv)
	s.lingers = wait.Limit // a slow client is not to be too late
	s.draining.Store(NewDrain(nil))
	t.Cleanup(func() {
		u.askStop()
		wait.For(t, u.Done(), "Done")
		wait.For(t, served, "execute")
	})
	return u, s, ln.Addr().String()
}

func dialSolo(t *testing.T, addr string) net.Conn {
	t.Helper()
	c, err := net.DialTimeout("tcp", addr, wait.Limit)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(wait.Limit))
	return c
}

// The last answer says so whatever the handler sets and however it answers, and
// what comes before it does not.
func TestLastAnswerSaysClose(t *testing.T) {
	for name, h := range map[string]http.HandlerFunc{
		"nothing":  func(http.ResponseWriter, *http.Request) {},
		"Write":    func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("x")) },
		"String":   func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "x") },
		"Header":   func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(404) },
		"ReadFrom": func(w http.ResponseWriter, _ *http.Request) { w.(io.ReaderFrom).ReadFrom(strings.NewReader("x")) },
		"Flush":    func(w http.ResponseWriter, _ *http.Request) { w.(http.Flusher).Flush(); io.WriteString(w, "x") },
		"Control":  func(w http.ResponseWriter, _ *http.Request) { http.NewResponseController(w).Flush() },
		"Content": func(w http.ResponseWriter, r *http.Request) {
			http.ServeContent(w, r, "x", time.Time{}, strings.NewReader("x"))
		},
		"Timeout": http.TimeoutHandler(http.NotFoundHandler(), wait.Limit, "").ServeHTTP,
		"Hints": func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(102)
			w.Header().Set("Link", "</x>")
			w.WriteHeader(103)
			io.WriteString(w, "x")
		},
		"Deadlines": func(w http.ResponseWriter, _ *http.Request) { mustDeadline(w); io.WriteString(w, "x") },
	} {
		for _, own := range []http.Header{{}, {"Connection": {"keep-alive"}}, {"Connection": {"close"}}, {"connection": {"keep-alive"}}, {"Connection": nil}} {
			t.Run(fmt.Sprintf("%s/%v", name, own), func(t *testing.T) {
				_, _, addr := serveDraining(t, &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					maps.Copy(w.Header(), own)
					h(w, r)
				})})
				c := dialSolo(t, addr)
				io.WriteString(c, "GET / HTTP/1.1\r\nHost: grace\r\n\r\n")
				in := bufio.NewReader(c)
				for _, code := range []string{"102", "103"} {
					if name != "Hints" {
						break
					}
					line, _ := in.ReadString('\n')
					header, err := textproto.NewReader(in).ReadMIMEHeader()
					if err != nil || !strings.Contains(line, code) {
						t.Fatalf("got %q, error %v; want %s", line, err, code)
					}
					if got, ok := header["Connection"]; ok || (header.Get("Link") != "") != (code == "103") {
						t.Errorf("%s says Connection: %q, Link: %q", code, got, header.Get("Link"))
					}
				}
				var raw bytes.Buffer // ReadResponse keeps Connection to itself
				in = bufio.NewReader(io.TeeReader(in, &raw))
				resp, err := http.ReadResponse(in, nil)
				if err != nil {
					t.Fatal(err)
				}
				io.Copy(io.Discard, resp.Body)
				if n := strings.Count(strings.ToLower(raw.String()), "\nconnection:"); n != 1 || !resp.Close {
					t.Errorf("the last answer says Connection %d times, want once: close; the handler has set %q; it is\n%s", n, own, raw.String())
				}
				if _, err := in.ReadByte(); err != io.EOF {
					t.Errorf("after the last answer: %v, want %v", err, io.EOF)
				}
			})
		}
	}
}

func mustDeadline(w http.ResponseWriter) {
	if err := http.NewResponseController(w).SetWriteDeadline(time.Now().Add(wait.Limit)); err != nil {
		panic(err)
	}
}

// A client that has sent more than its server reads before the last answer gets
// the answer and the end, not a reset.
func TestPipelinedLastAnswer(t *testing.T) {
	arrived, sent := make(chan struct{}), make(chan struct{})
	_, s, addr := serveDraining(t, &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		close(arrived)
		<-sent
		io.WriteString(w, "answer")
	})})
	c := dialSolo(t, addr)
	one := "GET / HTTP/1.1\r\nHost: grace\r\n\r\n"
	io.WriteString(c, one)
	wait.For(t, arrived, "the first request")
	// More than the server's buffer takes.
	if _, err := c.Write(bytes.Repeat([]byte(one), 1000)); err != nil {
		t.Fatal(err)
	}
	close(sent)
	resp, err := http.ReadResponse(bufio.NewReader(io.LimitReader(c, 1<<16)), nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	if string(b) != "answer" || err != nil || !resp.Close {
		t.Errorf("answered %q, error %v, Connection: close %v", b, err, resp.Close)
	}
	if _, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("after the last answer: %v, want %v", err, io.EOF)
	}
	if n := s.conns.open(true); n != 1 {
		t.Errorf("%d connections are open, want the one whose client has not closed it", n)
	}
	// What comes even later is read, not answered with a reset.
	for range 3 {
		if _, err := io.WriteString(c, one); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("after more requests: %v, want %v", err, io.EOF)
	}
	c.Close()
	if !s.conns.wait(NewDrain(nil), func() bool { return s.conns.open(true) == 0 }) {
		t.Error("the connection is open still")
	}
}

// HTTP/2 knows no Connection header: not while the process drains, either.
func TestNoConnectionHeaderInHTTP2(t *testing.T) {
	cert, trusting := tlstest.Certificate(t)
	for _, scheme := range []string{"http", "https"} {
		t.Run(scheme, func(t *testing.T) {
			srv := &http.Server{Protocols: new(http.Protocols), Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(http.StatusProcessing)
				w.WriteHeader(http.StatusEarlyHints)
				w.Header().Set("Connection", "keep-alive")
				io.WriteString(w, "x")
			})}
			if scheme == "https" {
				srv.Protocols.SetHTTP2(true)
				srv.TLSConfig = &tls.Config{Certificates: []tls.Certificate{cert}}
			} else {
				srv.Protocols.SetUnencryptedHTTP2(true)
			}
			_, _, addr := serveDraining(t, srv)
			tr := &http.Transport{Protocols: srv.Protocols, TLSClientConfig: trusting.Clone()}
			defer tr.CloseIdleConnections()
			var before []int
			ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
				before = append(before, code)
				if got, ok := h["Connection"]; ok {
					t.Errorf("%d says Connection: %q", code, got)
				}
				return nil
			}})
			req, err := http.NewRequestWithContext(ctx, "GET", scheme+"://"+addr, nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := tr.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if got, ok := resp.Header["Connection"]; ok || resp.Close {
				t.Errorf("the answer says Connection: %q", got)
			}
			if !slices.Equal(before, []int{102, 103}) || resp.ProtoMajor != 2 {
				t.Errorf("before the answer came %d, by %s; want 102 and 103, by HTTP/2", before, resp.Proto)
			}
		})
	}
}

// A server is known by what the user has, also after a drain that was rolled back, and
// while it serves.
func TestHTTPAgainAfterRollBack(t *testing.T) {
	var calls atomic.Int32
	srv := &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { calls.Add(1) })}
	u, ln := newProcess(t)
	served := u.run(t, u.HTTP(srv, ln))
	tr := &http.Transport{}
	defer tr.CloseIdleConnections()
	get := func(ln net.Listener) error {
		resp, err := (&http.Client{Transport: tr, Timeout: wait.Limit}).Get("http://" + ln.Addr().String())
		if err == nil {
			resp.Body.Close()
		}
		return err
	}
	s := u.httpServer(srv)
	d := NewDrain(nil)
	d.Cancel()
	s.Drain(d)
	other, err := u.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	asks, enough := make(chan struct{}), make(chan struct{})
	asked := make(chan int32, 1)
	var client sync.WaitGroup
	defer client.Wait()
	end := sync.OnceFunc(func() { close(enough) })
	defer end()
	client.Go(func() {
		for n := int32(0); ; n++ {
			if err := get(ln); err != nil {
				t.Error(err)
			}
			select {
			case asks <- struct{}{}:
			case <-enough:
				asked <- n + 1
				return
			default:
			}
		}
	})
	wait.For(t, asks, "an answer before")
	execute := u.HTTP(srv, other)
	again := make(chan error, 1)
	go func() { again <- execute() }()
	wait.For(t, asks, "an answer meanwhile")
	if u.httpServer(srv) != s {
		t.Error("the server is wrapped twice")
	}
	if err := get(other); err != nil {
		t.Error(err)
	}
	end()
	if n := wait.For(t, asked, "the client") + 1; calls.Load() != n {
		t.Errorf("%d requests have called the handler %d times", n, calls.Load())
	}
	tr.CloseIdleConnections()
	u.askStop()
	wait.For(t, u.Done(), "Done")
	for _, served := range []<-chan error{served, again} {
		if err := wait.For(t, served, "execute"); err != nil {
			t.Errorf("execute returned %v", err)
		}
	}
}
