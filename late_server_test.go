//go:build unix

package grace

import (
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"testing"

	"github.com/julofinance/grace/v3/internal/testing/tlstest"
)

// A stop that comes while the program still sets itself up, after Listen: a server
// that it makes then ends at once, and so does Run.
func TestServerThatComesAfterTheEnd(t *testing.T) {
	foreign := func(t *testing.T) net.Listener {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ln.Close() })
		return ln
	}
	accept := func(ln net.Listener) error {
		for {
			c, err := ln.Accept()
			if err != nil {
				return err
			}
			io.Copy(c, c)
			c.Close()
		}
	}
	cert, _ := tlstest.Certificate(t)
	type actor func(*Upgrader, net.Listener) (func() error, func(error))
	for name, server := range map[string]actor{
		"HTTP": func(u *Upgrader, ln net.Listener) (func() error, func(error)) { return u.HTTP(&http.Server{}, ln) },
		"HTTPS": func(u *Upgrader, ln net.Listener) (func() error, func(error)) {
			return u.HTTPS(&http.Server{TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}}}, ln, "", "")
		},
		"h2c": func(u *Upgrader, ln net.Listener) (func() error, func(error)) {
			srv := &http.Server{Protocols: new(http.Protocols)}
			srv.Protocols.SetHTTP1(true)
			srv.Protocols.SetUnencryptedHTTP2(true)
			return u.HTTP(srv, ln)
		},
		"Server": func(u *Upgrader, ln net.Listener) (func() error, func(error)) {
			return u.Server(Server{Listener: ln, Serve: accept})
		},
	} {
		for _, where := range []string{"listens", "wraps", "foreign"} {
			t.Run(name+" "+where, func(t *testing.T) {
				u, ln := newSolo(t)
				switch where {
				case "wraps":
					ln = ownWords{ln}
				case "foreign":
					ln = foreign(t)
				}
				u.askStop()
				receive(t, u.Done(), "Done")
				ran := make(chan error, 1)
				server(u, ln)
				go func() { ran <- u.Run(t.Context()) }()
				if err := receive(t, ran, "the end of Run"); err != nil {
					t.Errorf("Run returned %v", err)
				}
			})
		}
	}
}
