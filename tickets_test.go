//go:build unix

package grace

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/testing/tlstest"
)

// comeBack makes a connection and a request over it: which generation answers, and whether
// the connection resumes a session of the client's.
func comeBack(t *testing.T, addr net.Addr, client *tls.Config) (generation string, resumed bool) {
	t.Helper()
	d := tls.Dialer{NetDialer: &net.Dialer{Timeout: limit}, Config: client}
	c, err := d.DialContext(t.Context(), "tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(limit))
	fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
	answer, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	return string(answer[len(answer)-1:]), c.(*tls.Conn).ConnectionState().DidResume
}

// TestTicketsGoOver: session tickets of HTTPS, and of a framework's ServeTLS, are good in
// each later generation, and in the first again if an upgrade is rolled back. On another
// socket they are not.
func TestTicketsGoOver(t *testing.T) {
	cert, trust := tlstest.Certificate(t)
	for name, serve := range map[string]func(*generation, *http.Server, net.Listener) error{
		"HTTPS": func(g *generation, srv *http.Server, ln net.Listener) error {
			execute, _ := g.HTTPS(srv, ln, "", "")
			go execute()
			return nil
		},
		"Prepare": func(g *generation, srv *http.Server, ln net.Listener) error {
			prepared, err := g.Prepare(srv, ln)
			framework(srv, prepared, srv.TLSConfig)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			addrs := make(chan net.Addr, 99)
			h := newHouse(t, func(g *generation) error {
				for range 2 {
					ln, err := g.Listen("tcp", "127.0.0.1:0")
					if err != nil {
						return err
					}
					srv := &http.Server{Handler: answering(fmt.Sprint(g.n)), TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}}}
					if err := serve(g, srv, ln); err != nil {
						return err
					}
					addrs <- ln.Addr()
				}
				return g.Ready()
			})
			h.opts = func(n int) []Option {
				if n < 3 {
					return []Option{Probation(0)}
				}
				return []Option{Probation(limit)} // the fourth dies in it
			}
			client := func(version uint16) *tls.Config {
				c := trust.Clone()
				c.MinVersion, c.MaxVersion, c.ClientSessionCache = version, version, tls.NewLRUClientSessionCache(1)
				c.ServerName = "example.com"
				return c
			}
			clients := []*tls.Config{client(tls.VersionTLS12), client(tls.VersionTLS13)}
			g := h.first()
			addr, other := <-addrs, <-addrs
			come := func(want string, resumes bool) {
				t.Helper()
				for _, c := range clients {
					by, resumed := comeBack(t, addr, c)
					if by != want || resumed != resumes {
						t.Errorf("%s: generation %s answers, and the session is resumed: %v; want %s, %v", tls.VersionName(c.MinVersion), by, resumed, want, resumes)
					}
				}
			}
			come("1", false)
			come("1", true)
			for _, want := range []string{"2", "3"} {
				done := g.upgrade()
				next := h.next()
				if err := receive(t, done, "Upgrade"); err != nil {
					t.Fatal(err)
				}
				receive(t, g.ended, "the old generation to end")
				g = next
				come(want, true)
			}
			next, _ := g.toProbation()
			for _, c := range clients {
				for by := ""; by != "4"; { // an Accept of the third that had begun may take one more
					var resumed bool
					if by, resumed = comeBack(t, addr, c); !resumed {
						t.Errorf("%s: generation %s answers in probation, and the session is not resumed", tls.VersionName(c.MinVersion), by)
					}
				}
			}
			next.die()
			g.await(serving)
			come("3", true) // with a ticket that the dead one has given
			for _, c := range clients {
				if _, resumed := comeBack(t, other, c); resumed {
					t.Errorf("%s: the other socket takes the ticket", tls.VersionName(c.MinVersion))
				}
			}
			g.Close()
			receive(t, g.Done(), "the end")
		})
	}
}

// TestSecretsAreNotSeen: what prints the manifest, or a part of it, prints no secret.
func TestSecretsAreNotSeen(t *testing.T) {
	cert, _ := tlstest.Certificate(t)
	u, ln := newSolo(t)
	execute, _ := u.HTTPS(&http.Server{TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}}}, ln, "", "")
	go execute()
	if err := u.Ready(); err != nil {
		t.Fatal(err)
	}
	until(t, "the server to have keys", func() bool { return u.host.Tickets(u.socks.Snapshot()[0]) != "" })
	m := u.manifest(u.socks.Snapshot())
	secret := string(m.Sockets[0].Tickets)
	_, secret, _ = strings.Cut(secret, ":")
	if len(secret) != 64 {
		t.Fatalf("the manifest has %d characters of secrets, want 64", len(secret))
	}
	for _, format := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x"} {
		for _, what := range []any{m, *m, m.Sockets, m.Sockets[0], m.Sockets[0].Tickets} {
			if got := fmt.Sprintf(format, what); strings.Contains(got, secret) || strings.Contains(got, fmt.Sprintf("%x", secret)) {
				t.Errorf("%s of a %T prints the secret", format, what)
			}
		}
	}
	u.Close()
	receive(t, u.Done(), "the end")
}
