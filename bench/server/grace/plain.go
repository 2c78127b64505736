//go:build linux

package main

import (
	"net"

	"github.com/julofinance/grace/v3/bench/server"
)

// servePlain is the server on net/http alone, which can't be replaced. It does not return.
func servePlain(begun int64) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	server.Check(err)
	go func() { server.Serving(begun, ln); server.Alone() }()
	if cert := server.TLS(); cert != "" {
		server.Check(server.New().ServeTLS(ln, cert, cert))
	}
	server.Check(server.New().Serve(ln))
}
