package grace

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/testing/tlstest"
)

// TestMoveTLSInEachWay: the connection of a TLS client is answered by the second process,
// whichever function of the library or of a framework serves TLS.
func TestMoveTLSInEachWay(t *testing.T) {
	cert, trust := tlstest.Certificate(t)
	trust.ServerName, trust.MinVersion = "127.0.0.1", tls.VersionTLS13
	for name, c := range map[string]struct {
		serve func(*generation, *http.Server) (ended <-chan error, err error)
		ends  error
	}{
		"HTTPS": {func(g *generation, srv *http.Server) (<-chan error, error) {
			ended := make(chan error, 1)
			ln, err := g.Listen("tcp", srv.Addr)
			if err != nil {
				return nil, err
			}
			execute, _ := g.HTTPS(srv, ln, "", "")
			go func() { ended <- execute() }()
			return ended, g.Ready()
		}, nil},
		"ListenAndServe": {func(g *generation, srv *http.Server) (<-chan error, error) {
			ended := make(chan error, 1)
			go func() { ended <- g.ListenAndServe(srv) }()
			return ended, nil
		}, nil},
		"Prepare": {func(g *generation, srv *http.Server) (<-chan error, error) {
			ln, err := g.Listen("tcp", srv.Addr)
			if err != nil {
				return nil, err
			}
			prepared, err := g.Prepare(srv, ln)
			if err != nil {
				return nil, err
			}
			return framework(srv, prepared, srv.TLSConfig), g.Ready()
		}, http.ErrServerClosed},
	} {
		t.Run(name, func(t *testing.T) {
			ends := make(chan (<-chan error), 9)
			h := newHouse(t, func(g *generation) error {
				ended, err := c.serve(g, &http.Server{
					Addr: "127.0.0.1:0", Handler: answering(fmt.Sprint(g.n)), TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}},
				})
				ends <- ended
				return err
			})
			h.opts = func(int) []Option { return []Option{Probation(0), MoveTLS(true)} }
			old := h.first()
			if old.err != nil {
				t.Fatal(old.err)
			}
			old.await(serving)
			conn, err := tls.Dial("tcp", old.socks.Snapshot()[0].Bound, trust)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(limit))
			in := bufio.NewReader(conn)
			wantFrom := func(want string) {
				t.Helper()
				fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: test\r\n\r\n")
				resp, err := http.ReadResponse(in, nil)
				if err != nil {
					t.Fatalf("an answer of generation %s: %v", want, err)
				}
				defer resp.Body.Close()
				if b, err := io.ReadAll(resp.Body); string(b) != want || err != nil || resp.Close {
					t.Errorf("got %q, error %v, Connection: close %t; want %q of a connection that stays", b, err, resp.Close, want)
				}
			}
			wantFrom("1")
			done := old.upgrade()
			next := h.next()
			if err := receive(t, done, "Upgrade"); err != nil {
				t.Fatal(err)
			}
			receive(t, old.ended, "the end of the old one")
			wantFrom("2")
			conn.Close()
			next.askStop()
			receive(t, next.Done(), "Done")
			for range 2 {
				if err := receive(t, receive(t, ends, "a server"), "the end of a server"); !errors.Is(err, c.ends) {
					t.Errorf("it ended with %v, want %v", err, c.ends)
				}
			}
		})
	}
}
