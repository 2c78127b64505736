//go:build linux

// Benchserver is what the benchmarks of an upgrade replace. All generations
// write to one pipe, with times of CLOCK_MONOTONIC, which every process shares.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"

	"github.com/julofinance/grace/v3"
	"golang.org/x/sys/unix"
)

func main() {
	// The floor: a process that has come this far, and one that ends when it is told.
	if os.Getenv("BENCH_FLOOR") != "" {
		fmt.Printf("main %d\n", now())
		io.Copy(io.Discard, os.Stdin)
		return
	}
	begun := now()
	n := flag.Int("listeners", 1, "how many to open")
	pidFile := flag.String("pidfile", "", "PID file")
	exclusive := flag.Bool("exclusive", false, "with exclusive state, which takes no time to change hands")
	flag.Parse()
	opts := []grace.Option{grace.PIDFile(*pidFile), grace.Probation(0), grace.Logger(nil)}
	if *exclusive {
		nothing := func(context.Context) error { return nil }
		opts = append(opts, grace.Exclusive(nothing, nothing))
	}
	u, err := grace.New(opts...)
	if err != nil {
		log.Fatal(err)
	}
	srv := &http.Server{}
	for range *n {
		ln, err := u.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			log.Fatal(err)
		}
		u.HTTP(srv, ln)
	}
	if err := u.Ready(); err != nil {
		log.Fatal(err)
	}
	ready := now()
	go func() {
		u.WaitForParent(context.Background())
		fmt.Printf("ready %d begun %d pid %d\n", ready, begun, os.Getpid())
	}()
	if err := u.Run(context.Background()); err != nil {
		log.Fatal(err)
	}
}

func now() int64 {
	var ts unix.Timespec
	unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return ts.Nano()
}
