//go:build unix

package main

import (
	"context"
	"flag"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/julofinance/grace/v3"
	"github.com/julofinance/grace/v3/internal/load"
)

// serve is the server: what follows New is what any server would do. It ends
// when its standard input does, so that none outlives the demo.
func serve(args []string) error {
	f := flag.NewFlagSet("server", flag.ExitOnError)
	addr := f.String("addr", "127.0.0.1:0", "")
	tlsAddr := f.String("tls", "127.0.0.1:0", "")
	cert := f.String("cert", "", "file with a certificate and its key")
	pidFile := f.String("pidfile", "", "")
	probation := f.Duration("probation", time.Second, "")
	drain := f.Duration("drain", 30*time.Second, "")
	moveTLS := f.Bool("movetls", false, "")
	sabotage := f.String("sabotage", "", "file that breaks the next version")
	f.Parse(args)
	go func() {
		io.Copy(io.Discard, os.Stdin)
		os.Exit(3)
	}()
	log := slog.New(slog.NewJSONHandler(os.Stderr, nil)).With("from", os.Getpid())
	how := read(*sabotage)
	if how == "starting" {
		panic("this version is broken")
	}
	u, err := grace.New(grace.PIDFile(*pidFile), grace.Probation(*probation), grace.DrainTimeout(*drain), grace.MoveTLS(*moveTLS), grace.Logger(log))
	if err != nil {
		return err
	}
	ln, err := u.Listen("tcp", *addr)
	if err != nil {
		return err
	}
	tlsListener, err := u.Listen("tcp", *tlsAddr)
	if err != nil {
		return err
	}
	log.Info("demo: listening", "addr", ln.Addr().String(), "tls", tlsListener.Addr().String())
	if how == "serving" {
		go func() {
			if u.Ready() == nil {
				time.Sleep(*probation / 2)
				panic("this version is broken")
			}
		}()
	}
	u.HTTP(&http.Server{Handler: load.Handler()}, ln)
	u.HTTPS(&http.Server{Handler: load.Handler()}, tlsListener, *cert, *cert)
	return u.Run(context.Background())
}

// read takes what the demo has left for this version.
func read(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	os.Remove(path)
	return strings.TrimSpace(string(b))
}
