//go:build unix

// Command endless serves load's handler on two addresses, as a program written for
// fvbock's endless would: each by a goroutine, the second one later.
package main

import (
	"flag"
	"fmt"
	"log"
	"net/http"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/julofinance/grace/v3/compat/endless"
	"github.com/julofinance/grace/v3/internal/load"
)

func main() {
	cert := flag.String("cert", "", "serve TLS as well, with the certificate and key in this `file`")
	later := flag.Duration("later", 0, "begin the second server so much later")
	only := flag.String("only", "", "have no second server if there is this `file`")
	early := flag.Bool("early", false, "begin when a hook has run, for a SIGUSR1 that is sent in BeforeBegin")
	flag.DurationVar(&endless.DefaultHammerTime, "hammer", endless.DefaultHammerTime, "DefaultHammerTime")
	flag.Parse()

	http.Handle("/", load.Handler())
	srv := endless.NewServer("127.0.0.1:0", nil)
	heard := make(chan struct{}, 1)
	srv.BeforeBegin = func(addr string) {
		if *early {
			syscall.Kill(os.Getpid(), syscall.SIGUSR1)
			<-heard
		}
		fmt.Printf("begins pid=%d %s on %s\n", os.Getpid(), addr, srv.EndlessListener.Addr())
	}
	for _, s := range []syscall.Signal{syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGTERM} {
		srv.SignalHooks[endless.PRE_SIGNAL][s] = append(srv.SignalHooks[endless.PRE_SIGNAL][s], func() {
			fmt.Printf("pre %d pid=%d\n", s, os.Getpid())
		})
		err := srv.RegisterSignalHook(endless.POST_SIGNAL, s, func() { fmt.Printf("post %d pid=%d\n", s, os.Getpid()) })
		if err != nil {
			log.Fatal(err)
		}
	}
	if *early {
		srv.RegisterSignalHook(endless.POST_SIGNAL, syscall.SIGUSR1, func() { heard <- struct{}{} })
	}
	if err := srv.RegisterSignalHook(endless.POST_SIGNAL, syscall.SIGWINCH, func() {}); err == nil {
		log.Fatal("a hook for SIGWINCH was taken")
	}
	if err := srv.RegisterSignalHook(7, syscall.SIGHUP, func() {}); err == nil {
		log.Fatal("a hook for neither before nor after was taken")
	}

	var all sync.WaitGroup
	run := func(name string, serve func() error) {
		all.Go(func() { fmt.Printf("returned %s pid=%d: %v\n", name, os.Getpid(), serve()) })
	}
	run("first", srv.ListenAndServe)
	if _, err := os.Stat(*only); err != nil {
		run("second", func() error {
			time.Sleep(*later)
			return endless.ListenAndServe("localhost:0", nil)
		})
	}
	if *cert != "" {
		run("tls", func() error { return endless.ListenAndServeTLS("127.0.0.2:0", *cert, *cert, nil) })
	}
	all.Wait()
	fmt.Printf("exits pid=%d\n", os.Getpid())
}
