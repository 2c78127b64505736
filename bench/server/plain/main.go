//go:build linux

// Plain is the server of the benchmark on net/http alone: it can't be replaced.
package main

import (
	"net"

	"github.com/julofinance/grace/v3/bench/server"
)

func main() {
	begun := server.Begin()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	server.Check(err)
	go func() { server.Serving(begun, ln); server.Alone() }()
	if cert := server.TLS(); cert != "" {
		server.Check(server.New().ServeTLS(ln, cert, cert))
	}
	server.Check(server.New().Serve(ln))
}
