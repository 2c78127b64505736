// Server serves with golang.org/x/net's HTTP/2, which many programs set up
// themselves, and replaces itself.
package main

//lint:file-ignore SA1019 h2c.NewHandler is deprecated, and what many programs use

import (
	"context"
	"crypto/tls"
	"flag"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"os"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/h2c"

	"github.com/julofinance/grace/v3"
)

// maxStreams is a setting by which one sees whose HTTP/2 it is.
const maxStreams = 7

func main() {
	how := flag.String("how", "", "configure, configure-unencrypted, newhandler, newhandler-configured or wrapped-newhandler")
	cert := flag.String("cert", "", "file with a certificate and its key")
	pidFile := flag.String("pidfile", "", "PID file")
	flag.Parse()
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, nil)).With("from", os.Getpid()))
	u, err := grace.New(grace.PIDFile(*pidFile), grace.Probation(50*time.Millisecond), grace.DrainTimeout(time.Hour), grace.IdleGrace(time.Second))
	if err != nil {
		log.Fatal(err)
	}
	ln, err := u.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("listening %s pid=%d\n", ln.Addr(), os.Getpid())
	answer := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			io.Copy(w, r.Body)
			return
		}
		fmt.Fprintf(w, "pid=%d proto=%s", os.Getpid(), r.Proto)
	})
	srv := &http.Server{Handler: answer}
	srv.RegisterOnShutdown(func() { fmt.Printf("shutdown pid=%d\n", os.Getpid()) })
	settings := &http2.Server{MaxConcurrentStreams: maxStreams}
	unencrypted := func() {
		srv.Protocols = new(http.Protocols)
		srv.Protocols.SetHTTP1(true)
		srv.Protocols.SetUnencryptedHTTP2(true)
	}
	switch *how {
	case "configure":
		srv.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12}
		err = http2.ConfigureServer(srv, settings)
	case "configure-unencrypted":
		unencrypted()
		err = http2.ConfigureServer(srv, settings)
	case "newhandler":
		srv.Handler = h2c.NewHandler(answer, settings)
	case "newhandler-configured":
		srv.Handler = h2c.NewHandler(answer, settings)
		err = http2.ConfigureServer(srv, settings)
	case "wrapped-newhandler": // as the README says
		srv.Handler = http.MaxBytesHandler(h2c.NewHandler(answer, settings), 1<<20)
		srv.HTTP2 = &http.HTTP2Config{MaxConcurrentStreams: maxStreams}
		unencrypted()
	default:
		log.Fatalf("-how %q is unknown", *how)
	}
	if err != nil {
		log.Fatal(err)
	}
	if *how == "configure" {
		u.HTTPS(srv, ln, *cert, *cert)
	} else {
		u.HTTP(srv, ln)
	}
	if err := u.Run(context.Background()); err != nil {
		log.Fatal(err)
	}
}
