// Server echoes over QUIC, which keeps the state of its connections in the process,
// and replaces itself.
package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"flag"
	"fmt"
	"io"
	"log"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/julofinance/grace/v3"
)

func main() {
	how := flag.String("how", "", "plain, or hidden: without SyscallConn")
	pidFile := flag.String("pidfile", "", "PID file")
	flag.Parse()
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, nil)).With("from", os.Getpid()))
	u, err := grace.New(grace.PIDFile(*pidFile), grace.Probation(2*time.Second), grace.DrainTimeout(time.Hour))
	if err != nil {
		log.Fatal(err)
	}
	pc, err := u.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	ln, err := u.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("listening %s %s pid=%d\n", pc.LocalAddr(), ln.Addr(), os.Getpid())
	if *how == "hidden" {
		pc = struct{ net.PacketConn }{pc}
	}
	ql, err := quic.Listen(pc, &tls.Config{Certificates: []tls.Certificate{certificate()}, NextProtos: []string{"echo"}}, nil)
	if err != nil {
		log.Fatal(err)
	}
	go func() {
		for {
			c, err := ql.Accept(context.Background())
			if err != nil {
				return
			}
			go echo(c)
		}
	}()
	// A request that lasts holds the drain.
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})}
	u.HTTP(srv, ln)
	if err := u.Run(context.Background()); err != nil {
		log.Fatal(err)
	}
}

// echo answers each byte with the pid and that byte.
func echo(c *quic.Conn) {
	for {
		s, err := c.AcceptStream(context.Background())
		if err != nil {
			return
		}
		go func() {
			defer s.Close()
			b := make([]byte, 1)
			for {
				if _, err := io.ReadFull(s, b); err != nil {
					return
				}
				fmt.Fprintf(s, "%d %s\n", os.Getpid(), b)
			}
		}()
	}
}

func certificate() tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		log.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		log.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
