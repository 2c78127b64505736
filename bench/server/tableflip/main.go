//go:build linux

// Tableflip is the server of the benchmark on github.com/cloudflare/tableflip, as
// its README shows how to use it.
package main

import (
	"context"
	"errors"
	"net/http"
	"os"
	"os/signal"
	"syscall"

	"github.com/cloudflare/tableflip"
	"github.com/julofinance/grace/v3/bench/server"
)

func main() {
	begun := server.Begin()
	upg, err := tableflip.New(tableflip.Options{PIDFile: os.Args[1]})
	server.Check(err)
	defer upg.Stop()
	go func() {
		sig := make(chan os.Signal, 1)
		signal.Notify(sig, syscall.SIGUSR2)
		for range sig {
			server.Check(upg.Upgrade())
		}
	}()
	ln, err := upg.Listen("tcp", "127.0.0.1:0")
	server.Check(err)
	srv := server.New()
	go func() {
		if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			server.Check(err)
		}
	}()
	server.Serving(begun, ln.Addr().String()) // before Ready: it accepts already
	server.Check(upg.Ready())
	server.Check(upg.WaitForParent(context.Background()))
	server.Alone()
	<-upg.Exit()
	server.Check(srv.Shutdown(context.Background()))
}
