//go:build unix

package grace_test

import (
	"context"
	"errors"
	"log"
	"net"
	"net/http"

	"github.com/julofinance/grace/v3"
)

// A framework that is given a server and a listener, and calls srv.Serve itself.
func ExampleUpgrader_Prepare() {
	framework := func(srv *http.Server, ln net.Listener) error { return srv.Serve(ln) }

	u, err := grace.New(grace.PIDFile("app.pid"))
	if err != nil {
		log.Fatal(err)
	}
	ln, err := u.Listen("tcp", ":9000")
	if err != nil {
		log.Fatal(err)
	}
	srv := &http.Server{}
	prepared, err := u.Prepare(srv, ln)
	if err != nil {
		log.Fatal(err)
	}
	go func() {
		if err := framework(srv, prepared); !errors.Is(err, http.ErrServerClosed) {
			log.Print(err)
			u.Abort()
		}
	}()
	if err := u.Run(context.Background()); err != nil {
		log.Fatal(err)
	}
}

// A framework that opens its socket itself: it does so in the first process only.
func ExampleUpgrader_ListenFunc() {
	open := func() (net.Listener, error) { return net.Listen("tcp", ":9000") } // the framework's

	u, err := grace.New()
	if err != nil {
		log.Fatal(err)
	}
	ln, err := u.ListenFunc("tcp", ":9000", open)
	if err != nil {
		log.Fatal(err)
	}
	u.HTTP(&http.Server{}, ln)
	if err := u.Run(context.Background()); err != nil {
		log.Fatal(err)
	}
}
