package main

import (
	"bufio"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"flag"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/julofinance/grace/v3"
)

// All kinds of listeners and servers, for the matrix of roll backs. A flag says
// wrapper,server,network=addr: the wrapper is none, limit, proxy, tls or cmux; the
// server http, https or server.
var served, servedFirst, servedLater addrs

// limitListener is netutil.LimitListener of golang.org/x/net, as far as it
// matters: once it is closed it accepts and closes every connection.
type limitListener struct {
	net.Listener
	sem  chan struct{}
	done chan struct{}
	once sync.Once
}

func (l *limitListener) Accept() (net.Conn, error) {
	select {
	case <-l.done:
	case l.sem <- struct{}{}:
		c, err := l.Listener.Accept()
		if err != nil {
			<-l.sem
			return nil, err
		}
		return &limitConn{Conn: c, release: func() { <-l.sem }}, nil
	}
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		c.Close()
	}
}

func (l *limitListener) Close() error {
	err := l.Listener.Close()
	l.once.Do(func() { close(l.done) })
	return err
}

type limitConn struct {
	net.Conn
	once    sync.Once
	release func()
}

func (c *limitConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(c.release)
	return err
}

// proxyListener reads a line before the connection's own bytes, when it is first
// read from.
type proxyListener struct{ net.Listener }

func (l proxyListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &proxyConn{Conn: c, r: bufio.NewReader(c)}, nil
}

type proxyConn struct {
	net.Conn
	r    *bufio.Reader
	once sync.Once
}

func (c *proxyConn) Read(p []byte) (int, error) {
	c.once.Do(func() { c.r.ReadString('\n') })
	return c.r.Read(p)
}

// A mux is github.com/soheilhy/cmux, as far as it matters: it accepts by itself,
// and is over for good when that fails.
type mux struct {
	net.Listener // the root
	conns        chan net.Conn
	over         chan struct{}
	once         sync.Once
}

func newMux(root net.Listener) *mux {
	m := &mux{Listener: root, conns: make(chan net.Conn), over: make(chan struct{})}
	go func() {
		defer m.Close()
		for {
			c, err := root.Accept()
			if err != nil {
				return
			}
			select {
			case m.conns <- c:
			case <-m.over:
				c.Close()
			}
		}
	}()
	return m
}

func (m *mux) Accept() (net.Conn, error) {
	select {
	case c := <-m.conns:
		return c, nil
	case <-m.over:
		return nil, net.ErrClosed
	}
}

func (m *mux) Close() error {
	m.once.Do(func() { close(m.over) })
	return m.Listener.Close()
}

var rsaKeys = flag.Bool("rsa", false, "certificates have RSA keys")

func newKey() (crypto.Signer, error) {
	if *rsaKeys {
		return rsa.GenerateKey(rand.Reader, 2048)
	}
	return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
}

func certificate() (cert, key []byte) {
	k, err := newKey()
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"test"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), k)
	if err != nil {
		panic(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		panic(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})
}

var theCertificate = sync.OnceValue(func() tls.Certificate {
	c, err := tls.X509KeyPair(certificate())
	if err != nil {
		panic(err)
	}
	return c
})

// listenKinds listens on what the flags say.
func listenKinds(u *grace.Upgrader) error {
	all := append(addrs(nil), served...)
	if u.HasParent() {
		all = append(all, servedLater...)
	} else {
		all = append(all, servedFirst...)
	}
	for _, flag := range all {
		parts := strings.SplitN(flag, ",", 3)
		ln, err := listenOn(u, parts[0]+"-"+parts[1], parts[2])
		if err != nil {
			return err
		}
		switch parts[0] {
		case "limit":
			ln = &limitListener{Listener: ln, sem: make(chan struct{}, 100), done: make(chan struct{})}
		case "proxy":
			ln = proxyListener{ln}
		case "tls":
			ln = tls.NewListener(ln, &tls.Config{Certificates: []tls.Certificate{theCertificate()}})
		case "cmux":
			ln = newMux(ln)
		}
		h := http.NewServeMux()
		h.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, os.Getpid()) })
		h.HandleFunc("/hijack", func(w http.ResponseWriter, _ *http.Request) {
			c, rw, err := http.NewResponseController(w).Hijack()
			if err != nil {
				panic(err)
			}
			defer c.Close()
			fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\n\r\n%d\n", os.Getpid())
			io.Copy(c, rw)
		})
		srv := &http.Server{Handler: h, TLSConfig: &tls.Config{Certificates: []tls.Certificate{theCertificate()}}, TLSNextProto: nil}
		switch parts[1] {
		case "http":
			u.HTTP(srv, ln)
		case "https":
			u.HTTPS(srv, ln, "", "")
		case "server":
			u.Server(echoServer(ln))
		}
	}
	return nil
}

// echoServer closes its listener in Shutdown, as gRPC's does, and waits for its
// Serve to return.
func echoServer(ln net.Listener) grace.Server {
	var mu sync.Mutex
	var serving net.Listener
	var ended chan struct{}
	return grace.Server{
		Listener: ln,
		Serve: func(ln net.Listener) error {
			end := make(chan struct{})
			defer close(end)
			mu.Lock()
			serving, ended = ln, end
			mu.Unlock()
			for {
				c, err := ln.Accept()
				if err != nil {
					return err
				}
				go func() {
					defer c.Close()
					fmt.Fprintln(c, os.Getpid())
					io.Copy(c, c)
				}()
			}
		},
		Shutdown: func(ctx context.Context) error {
			mu.Lock()
			ln, end := serving, ended
			mu.Unlock()
			ln.Close()
			select {
			case <-end:
			case <-ctx.Done():
				return ctx.Err()
			}
			return nil
		},
	}
}
