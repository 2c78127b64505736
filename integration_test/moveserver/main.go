//go:build linux

// Moveserver is a server whose connections are moved: -in1 and -in2 say what its
// first and its later generations do otherwise than usual, as words:
//
//	nomove      MoveConns(false)
//	wrap        the listener is wrapped by one that counts
//	tls         it speaks TLS
//	movetls     MoveTLS(true)
//	hiddentls   so does the listener, and one around it that counts hides it
//	without     it has no such listener
//	sockopts    TCP_NODELAY and keep-alives are off
//	log         each connection's state is printed
package main

import (
	"context"
	"crypto/tls"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/julofinance/grace/v3"
	"golang.org/x/sys/unix"
)

var (
	listen    = flag.String("listen", "tcp=127.0.0.1:0", "network=addr")
	second    = flag.String("second", "tcp=127.0.0.2:0", "network=addr to listen on besides")
	probation = flag.Duration("probation", 50*time.Millisecond, "probation")
	idle      = flag.Duration("idlegrace", 2*time.Second, "idle grace")
	drain     = flag.Duration("drain", time.Minute, "drain timeout")
	in1       = flag.String("in1", "", "what the first generation does")
	in2       = flag.String("in2", "", "what the others do")
	file      = flag.String("file", "", "what /file serves")
	cert      = flag.String("cert", "", "certificate and key, in one file")
	nofile    = flag.Int("nofile2", 0, "RLIMIT_NOFILE of the others: this many more than they have open when they are ready")
)

// does reports whether this generation does a thing. The environment counts them.
var does = func() func(string) bool {
	n, _ := strconv.Atoi(os.Getenv("MOVESERVER_GENERATION"))
	os.Setenv("MOVESERVER_GENERATION", strconv.Itoa(n+1))
	return func(word string) bool {
		return slices.Contains(strings.Split(map[bool]string{true: *in1, false: *in2}[n == 0], ","), word)
	}
}()

func main() {
	flag.Parse()
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, nil)).With("from", os.Getpid()))
	go func() { // the test process is gone
		io.Copy(io.Discard, os.Stdin)
		os.Exit(99)
	}()
	if n, err := strconv.Atoi(os.Getenv("MOVESERVER_NOFILE")); err == nil {
		limitFiles(n)
	}
	if err := run(); err != nil {
		slog.Error("moveserver: exits", "err", err)
		os.Exit(1)
	}
}

func run() error {
	u, err := grace.New(grace.MoveConns(!does("nomove")), grace.MoveTLS(does("movetls")), grace.Probation(*probation), grace.IdleGrace(*idle), grace.DrainTimeout(*drain))
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: handlers(u)}
	if does("sockopts") || does("log") {
		srv.ConnState = func(c net.Conn, s http.ConnState) {
			if tc, ok := c.(interface {
				SetNoDelay(bool) error
				SetKeepAlive(bool) error
			}); ok && s == http.StateNew && does("sockopts") {
				tc.SetNoDelay(false)
				tc.SetKeepAlive(false)
			}
			if does("log") {
				fmt.Printf("state %v %v pid=%d\n", s, c.RemoteAddr(), os.Getpid())
			}
		}
	}
	for i, a := range []string{*listen, *second} {
		if i == 0 && does("without") {
			continue
		}
		network, addr, _ := strings.Cut(a, "=")
		ln, err := u.Listen(network, addr)
		if err != nil {
			return err
		}
		fmt.Printf("listening %d %s pid=%d\n", i+1, ln.Addr(), os.Getpid())
		if i == 0 && does("wrap") {
			ln = &counting{Listener: ln}
		}
		if i == 0 && (does("hiddentls") || does("tlslistener")) {
			pair, err := tls.LoadX509KeyPair(*cert, *cert)
			if err != nil {
				return err
			}
			ln = tls.NewListener(ln, &tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: []string{"http/1.1"}})
			if does("hiddentls") {
				ln = &counting{Listener: ln}
			}
		}
		if i == 0 && does("tls") {
			u.HTTPS(&http.Server{Handler: srv.Handler, TLSConfig: &tls.Config{}}, ln, *cert, *cert)
			continue
		}
		u.HTTP(srv, ln)
	}
	if *nofile > 0 && u.HasParent() {
		limitFiles(openFiles() + *nofile)
	}
	return u.Run(context.Background())
}

// counted are the connections that counting listeners have given.
var counted atomic.Int64

type counting struct{ net.Listener }

func (l *counting) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	counted.Add(1)
	return countedConn{c}, nil
}

type countedConn struct{ net.Conn }

func handlers(u *grace.Upgrader) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%d %v %v %d", os.Getpid(), r.RemoteAddr, r.Context().Value(http.LocalAddrContextKey), counted.Load())
	})
	// /hold answers once the request's body has ended.
	mux.HandleFunc("/hold", func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		fmt.Fprintf(w, "%d", os.Getpid())
	})
	// /limit?spare=N allows this process, and the next, N more descriptors than it has.
	mux.HandleFunc("/limit", func(w http.ResponseWriter, r *http.Request) {
		spare, _ := strconv.Atoi(r.FormValue("spare"))
		n := openFiles() + spare
		os.Setenv("MOVESERVER_NOFILE", strconv.Itoa(n))
		limitFiles(n)
		fmt.Fprint(w, n)
	})
	mux.HandleFunc("/stop", func(http.ResponseWriter, *http.Request) { go u.Shutdown(context.Background()) })
	// Of two that ask for /pair, the first one's bytes are copied to the second.
	mux.HandleFunc("/pair", func(w http.ResponseWriter, r *http.Request) {
		c, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err)
		}
		io.WriteString(c, "ok\n")
		if r.URL.RawQuery == "source" {
			sources <- c
			return
		}
		src := <-sources
		io.Copy(c, src)
		src.Close()
		c.Close()
	})
	mux.HandleFunc("/file", func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, *file) })
	return mux
}

var sources = make(chan net.Conn)

func openFiles() int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		panic(err)
	}
	return len(entries)
}

func limitFiles(n int) {
	var l unix.Rlimit
	err := unix.Prlimit(0, unix.RLIMIT_NOFILE, nil, &l)
	l.Cur = uint64(n)
	if err == nil {
		err = unix.Prlimit(0, unix.RLIMIT_NOFILE, &l, nil)
	}
	if err != nil {
		panic(err)
	}
}
