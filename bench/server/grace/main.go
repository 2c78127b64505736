//go:build linux

// Grace is the server of the benchmark on this library.
package main

import (
	"context"
	"os"

	"github.com/julofinance/grace/v3"
	"github.com/julofinance/grace/v3/bench/server"
)

func main() {
	begun := server.Begin()
	u, err := grace.New(grace.PIDFile(os.Args[1]), grace.Probation(0))
	server.Check(err)
	ln, err := u.Listen("tcp", "127.0.0.1:0")
	server.Check(err)
	serve, _ := u.HTTP(server.New(), ln)
	ended := make(chan error, 1)
	go func() { ended <- serve() }()
	server.Check(u.Ready())
	server.Serving(begun, ln.Addr().String())
	server.Check(u.WaitForParent(context.Background()))
	server.Alone()
	server.Check(<-ended)
	<-u.Done()
}
