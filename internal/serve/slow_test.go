//go:build unix

package serve

import (
	"crypto/tls"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/testing/tlstest"
	"github.com/julofinance/grace/v3/internal/testing/wait"
)

// dribble sends a byte now and then, of a record that is long, until c is closed.
func dribble(c net.Conn) {
	io.WriteString(c, "\x16\x03\x01\x40\x00")
	go func() {
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for range tick.C {
			if _, err := c.Write([]byte{1}); err != nil {
				return
			}
		}
	}()
}

// TestSlowClientsHoldNothingUp: while clients have connected that say nothing, or nothing
// whole, the next one is answered.
func TestSlowClientsHoldNothingUp(t *testing.T) {
	cert, trusting := tlstest.Certificate(t)
	hello := clientHello(t)
	for _, c := range []struct {
		name   string
		scheme string
		wraps  bool // a listener of the program does TLS
		moves  bool // with MoveTLS, which sees through it
		set    func(*http.Protocols)
	}{
		{"HTTPS, HTTP/1", "https", false, false, func(p *http.Protocols) { p.SetHTTP1(true) }},
		{"HTTPS, HTTP/2", "https", false, false, func(p *http.Protocols) { p.SetHTTP2(true) }},
		{"a TLS listener", "https", true, false, func(p *http.Protocols) { p.SetHTTP1(true) }},
		{"a TLS listener, seen through", "https", true, true, func(p *http.Protocols) { p.SetHTTP1(true) }},
		{"h2c", "http", false, false, func(p *http.Protocols) { p.SetUnencryptedHTTP2(true) }},
		{"HTTP/1 beside h2c", "http", false, false, func(p *http.Protocols) { p.SetHTTP1(true) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			u, ln := newProcess(t, idle(time.Millisecond))
			u.MoveTLS = c.moves
			var closed sync.Map // by the client's address
			srv := &http.Server{
				Handler:  http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "answer") }),
				ErrorLog: log.New(io.Discard, "", 0), Protocols: new(http.Protocols),
				ConnState: func(c net.Conn, s http.ConnState) {
					if s == http.StateClosed {
						closed.Store(c.RemoteAddr().String(), true)
					}
				},
			}
			srv.Protocols.SetHTTP1(true)
			srv.Protocols.SetHTTP2(true)
			srv.Protocols.SetUnencryptedHTTP2(true)
			config := &tls.Config{Certificates: []tls.Certificate{cert}}
			addr := ln.Addr().String()
			var served <-chan error
			switch {
			case c.wraps:
				served = u.run(t, u.HTTP(srv, tls.NewListener(ln, config)))
			case c.scheme == "https":
				srv.TLSConfig = config
				served = u.run(t, u.HTTPS(srv, ln, "", ""))
			default:
				served = u.run(t, u.HTTP(srv, ln))
			}
			defer wait.For(t, served, "execute")
			defer u.askStop()
			slow := []struct {
				name string
				say  func(net.Conn)
				ends bool // the server may know at once that this is nothing
			}{
				{"silent", func(net.Conn) {}, false},
				{"half a hello", func(c net.Conn) { io.WriteString(c, hello[:len(hello)/2]) }, c.scheme == "http"},
				{"a byte at a time", dribble, false},
				{"half a preface", func(c net.Conn) { io.WriteString(c, "PRI *") }, c.scheme == "https"},
			}
			addrs := map[string]string{}
			for _, client := range slow {
				conn, err := net.DialTimeout("tcp", addr, wait.Limit)
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				client.say(conn)
				addrs[client.name] = conn.LocalAddr().String()
			}
			tr := &http.Transport{TLSClientConfig: trusting.Clone(), Protocols: new(http.Protocols)}
			c.set(tr.Protocols)
			defer tr.CloseIdleConnections()
			client := http.Client{Transport: tr, Timeout: wait.Limit}
			resp, err := client.Get(c.scheme + "://" + addr)
			if err != nil {
				t.Fatalf("another client: %v", err)
			}
			defer resp.Body.Close()
			if b, err := io.ReadAll(resp.Body); string(b) != "answer" || err != nil {
				t.Errorf("another client is answered %q, %v", b, err)
			}
			for _, client := range slow {
				if _, ok := closed.Load(addrs[client.name]); ok && !client.ends {
					t.Errorf("the client that is slow (%s) was cut off", client.name)
				}
			}
		})
	}
}
