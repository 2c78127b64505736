//go:build linux

// Grace is the server of the benchmark on this library.
package main

import (
	"context"
	"net"
	"os"

	"github.com/julofinance/grace/v3"
	"github.com/julofinance/grace/v3/bench/server"
)

func main() {
	begun := server.Begin()
	if os.Getenv(server.PlainVariable) != "" {
		servePlain(begun)
	}
	u, err := grace.New(grace.PIDFile(os.Args[1]), grace.Probation(server.Probation()), grace.MoveTLS(os.Getenv(server.MoveTLSVariable) != ""))
	server.Check(err)
	ln, err := u.Listen("tcp", "127.0.0.1:0")
	server.Check(err)
	var serve func() error
	if cert := server.TLS(); cert != "" {
		serve, _ = u.HTTPS(server.New(), ln, cert, cert)
	} else {
		serve, _ = u.HTTP(server.New(), ln)
	}
	listeners := []net.Listener{ln}
	ended := make(chan error, 2)
	if cert := server.Certificate(); cert != "" {
		ln, err := u.Listen("tcp", "127.0.0.1:0")
		server.Check(err)
		serveTLS, _ := u.HTTPS(server.New(), ln, cert, cert)
		listeners = append(listeners, ln)
		go func() { ended <- serveTLS() }()
	}
	go func() { ended <- serve() }()
	server.Check(u.Ready())
	server.Serving(begun, listeners...)
	server.Check(u.WaitForParent(context.Background()))
	server.Alone()
	for range listeners {
		server.Check(<-ended)
	}
	<-u.Done()
}
