// Server is served by github.com/prometheus/exporter-toolkit, as most exporters of
// Prometheus are, and replaces itself.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"os"
	"time"

	"github.com/prometheus/exporter-toolkit/web"

	"github.com/julofinance/grace/v3"
	"github.com/julofinance/grace/v3/internal/load"
)

func main() {
	config := flag.String("config", "", "the toolkit's web.config.file")
	die := flag.String("die", "", "a file: where it is there, a process that was started by another dies when it is ready")
	pidFile := flag.String("pidfile", "", "PID file")
	flag.Parse()
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, nil)).With("from", os.Getpid()))
	go func() { // the test process is gone
		io.Copy(io.Discard, os.Stdin)
		os.Exit(99)
	}()
	u, err := grace.New(grace.PIDFile(*pidFile), grace.Probation(100*time.Millisecond), grace.IdleGrace(time.Second))
	if err != nil {
		log.Fatal(err)
	}
	ln, err := u.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("listening %s pid=%d\n", ln.Addr(), os.Getpid())
	srv := &http.Server{Handler: load.Handler()}
	prepared, err := u.Prepare(srv, ln)
	if err != nil {
		log.Fatal(err)
	}
	if _, err := os.Stat(*die); err == nil && u.HasParent() { // before it has accepted anything, which would be lost with it
		if err := u.Ready(); err != nil {
			log.Fatal(err)
		}
		os.Exit(3)
	}
	go func() {
		flags := &web.FlagConfig{WebConfigFile: config}
		if err := web.Serve(prepared, srv, flags, slog.Default()); !errors.Is(err, http.ErrServerClosed) {
			log.Fatal(err)
		}
		fmt.Printf("web.Serve has returned pid=%d\n", os.Getpid())
	}()
	if err := u.Run(context.Background()); err != nil {
		log.Fatal(err)
	}
}
