// Server serves HTTP/2 over TLS and without, by net/http alone or by this library.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/julofinance/grace/v3"
)

func main() {
	plain := flag.Bool("plain", false, "by net/http alone")
	cert := flag.String("cert", "", "file with a certificate and its key")
	pidFile := flag.String("pidfile", "", "PID file")
	flag.Parse()
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, nil)).With("from", os.Getpid()))
	srv := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			io.WriteString(w, "an answer that is longer than some windows\n")
		}),
		ErrorLog: log.New(io.Discard, "", 0), Protocols: new(http.Protocols),
	}
	srv.Protocols.SetHTTP1(true)
	srv.Protocols.SetHTTP2(true)
	srv.Protocols.SetUnencryptedHTTP2(true)
	var err error
	if *plain {
		err = byNetHTTP(srv, *cert)
	} else {
		err = byGrace(srv, *cert, *pidFile)
	}
	if err != nil {
		log.Fatal(err)
	}
}

func byNetHTTP(srv *http.Server, cert string) error {
	go func() { // the end of the test
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	overTLS, without, err := listen(net.Listen)
	if err != nil {
		return err
	}
	go srv.ServeTLS(overTLS, cert, cert)
	return srv.Serve(without)
}

func byGrace(srv *http.Server, cert, pidFile string) error {
	u, err := grace.New(grace.PIDFile(pidFile), grace.Probation(50*time.Millisecond))
	if err != nil {
		return err
	}
	overTLS, without, err := listen(u.Listen)
	if err != nil {
		return err
	}
	u.HTTPS(srv, overTLS, cert, cert)
	u.HTTP(srv, without)
	return u.Run(context.Background())
}

func listen(listen func(network, addr string) (net.Listener, error)) (overTLS, without net.Listener, err error) {
	if overTLS, err = listen("tcp", "127.0.0.1:0"); err != nil {
		return nil, nil, err
	}
	if without, err = listen("tcp", "127.0.0.1:0"); err != nil {
		return nil, nil, err
	}
	fmt.Printf("listening %s %s pid=%d\n", overTLS.Addr(), without.Addr(), os.Getpid())
	return overTLS, without, nil
}
