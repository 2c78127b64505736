//go:build linux

package xnet

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"

	"github.com/julofinance/grace/v3/internal/http2conn"
	"github.com/julofinance/grace/v3/internal/proctest"
	"github.com/julofinance/grace/v3/internal/testing/tlstest"
	"github.com/julofinance/grace/v3/internal/testing/wait"
	"golang.org/x/net/http2"
)

// oneConn is a listener with one connection.
type oneConn chan net.Conn

func (l oneConn) Accept() (net.Conn, error) {
	c, ok := <-l
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}

func (oneConn) Close() error   { return nil }
func (oneConn) Addr() net.Addr { return &net.TCPAddr{} }

// TestServe: an http2conn.Conn fits below HTTP/2 that ConfigureServer has bound to a
// server, with TLS and without, and the user's settings hold.
func TestServe(t *testing.T) {
	path := tlstest.File(t)
	cert, err := tls.LoadX509KeyPair(path, path)
	if err != nil {
		t.Fatal(err)
	}
	for _, overTLS := range []bool{false, true} {
		t.Run(fmt.Sprintf("TLS=%v", overTLS), func(t *testing.T) {
			type key struct{}
			srv := &http.Server{
				Protocols: new(http.Protocols),
				ConnContext: func(ctx context.Context, c net.Conn) context.Context {
					return context.WithValue(ctx, key{}, http2conn.Of(c).Hidden())
				},
				Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if r.TLS == nil {
						r.TLS = r.Context().Value(key{}).(*tls.ConnectionState)
					}
					fmt.Fprint(w, r.TLS != nil)
				}),
			}
			srv.Protocols.SetHTTP2(true)
			srv.Protocols.SetUnencryptedHTTP2(true)
			if err := http2.ConfigureServer(srv, &http2.Server{MaxConcurrentStreams: 7}); err != nil {
				t.Fatal(err)
			}
			ended := make(oneConn)
			close(ended)
			srv.Serve(ended) // sets it up

			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			given := make(chan *http2conn.Conn, 1)
			go func() {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				if overTLS {
					tc := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"h2"}})
					if err := tc.Handshake(); err != nil {
						t.Error(err)
					}
					c = tc
				}
				served, conn := http2conn.Serve(srv, c)
				one := make(oneConn, 1)
				one <- served
				close(one)
				given <- conn
				srv.Serve(one)
			}()
			defer srv.Close()
			c := dial(t, ln.Addr().String(), overTLS)
			if got, want := c.get(), fmt.Sprint(overTLS); got != want || c.streams != 7 {
				t.Fatalf("Request.TLS is set: %s, want %s; the server takes %d streams at once, want 7", got, want, c.streams)
			}
			conn := wait.For(t, given, "the connection")
			if conn == nil {
				t.Fatal("the server would take no http2conn.Conn")
			}
			conn.GoAway(proctest.Limit, func() { go srv.Shutdown(t.Context()) })
			c.wait("GOAWAY", func() bool { return len(c.aways) == 1 })
			c.get() // it was on its way
			c.wait("the end", func() bool { return c.ended != nil })
			if c.ended != io.EOF || len(c.aways) != 2 || c.aways[0] != 1<<31-1 || c.aways[1] != 3 {
				t.Errorf("GOAWAY says last streams %d, want 2^31-1 and 3; the end is %v", c.aways, c.ended)
			}
		})
	}
}
