//go:build linux

// Tableflip is the server of the benchmark on github.com/cloudflare/tableflip, as
// its README shows how to use it.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/cloudflare/tableflip"
	"github.com/julofinance/grace/v3/bench/server"
)

func main() {
	begun := server.Begin()
	upg, err := tableflip.New(tableflip.Options{PIDFile: os.Args[1]})
	server.Check(err)
	defer upg.Stop()
	listens := make(chan struct{}) // to the signal
	go func() {
		sig := make(chan os.Signal, 1)
		signal.Notify(sig, syscall.SIGUSR2)
		close(listens)
		for range sig {
			err := upg.Upgrade()
			// Its loop may not know yet what WaitForParent has returned for.
			for try := 0; err != nil && err.Error() == "parent hasn't exited" && try < 1000; try++ {
				time.Sleep(time.Millisecond)
				err = upg.Upgrade()
			}
			server.Check(err)
		}
	}()
	var listeners []net.Listener
	var servers []*http.Server
	add := func(serve func(*http.Server, net.Listener) error) {
		ln, err := upg.Listen("tcp", fmt.Sprintf("127.0.0.%d:0", 1+len(listeners))) // a name each
		server.Check(err)
		srv := server.New()
		listeners, servers = append(listeners, ln), append(servers, srv)
		go func() {
			if err := serve(srv, ln); !errors.Is(err, http.ErrServerClosed) {
				server.Check(err)
			}
		}()
	}
	if cert := server.TLS(); cert != "" {
		add(func(srv *http.Server, ln net.Listener) error { return srv.ServeTLS(ln, cert, cert) })
	} else {
		add((*http.Server).Serve)
	}
	if cert := server.Certificate(); cert != "" {
		add(func(srv *http.Server, ln net.Listener) error { return srv.ServeTLS(ln, cert, cert) })
	}
	server.Serving(begun, listeners...) // before Ready: it accepts already
	server.Check(upg.Ready())
	server.Check(upg.WaitForParent(context.Background()))
	<-listens // or the next signal could come before that, and be lost
	server.Alone()
	<-upg.Exit()
	var all sync.WaitGroup
	for _, srv := range servers {
		all.Go(func() { server.Check(srv.Shutdown(context.Background())) })
	}
	all.Wait()
}
