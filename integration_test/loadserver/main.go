// Loadserver serves what internal/load asks for, in every way that net/http
// has, and replaces itself.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/julofinance/grace/v3"
)

var (
	pidFile   = flag.String("pidfile", "", "PID file")
	probation = flag.Duration("probation", time.Second, "probation")
	drain     = flag.Duration("drain", 30*time.Second, "drain timeout")
	lame      = flag.Duration("lame", 0, "lame duck")
	plain     = flag.String("plain", "", "serve plaintext HTTP/1 on this address")
	tls       = flag.String("tls", "", "serve HTTP/1.1 and HTTP/2 over TLS on this address")
	h2c       = flag.String("h2c", "", "serve HTTP/1 and HTTP/2, both plaintext, on this address")
	unix      = flag.String("unix", "", "serve plaintext HTTP/1 on this unix socket")
	limited   = flag.String("limited", "", "serve plaintext HTTP/1 on this address, through a listener that wraps ours")
	most      = flag.Int("most", 1000, "how many connections -limited lets in at once")
	moveTLS   = flag.Bool("movetls", false, "MoveTLS(true), and HTTP/1.1 only over TLS")
	insist    = flag.Bool("insist", false, "each answer is given Connection: keep-alive, as some handlers do")
	events    = flag.Duration("events", 0, "write each event, and take that long for it")
	certs     = flag.String("certs", "", "directory with cert.pem and key.pem")
)

func main() {
	flag.Parse()
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, nil)).With("from", os.Getpid()))
	dieWithTest()
	if err := run(); err != nil {
		slog.Error("loadserver: exits", "err", err)
		os.Exit(1)
	}
}

// dieWithTest ends the process when standard input, a pipe that the test
// process holds open, has ended.
func dieWithTest() {
	if fi, err := os.Stdin.Stat(); err != nil || fi.Mode()&os.ModeNamedPipe == 0 {
		return
	}
	go func() {
		io.Copy(io.Discard, os.Stdin)
		os.Exit(99)
	}()
}

func run() error {
	readSickness()
	opts := append(healthOptions(), grace.PIDFile(*pidFile), grace.Probation(*probation), grace.DrainTimeout(*drain), grace.LameDuck(*lame), grace.MoveTLS(*moveTLS))
	if *events > 0 {
		opts = append(opts, grace.Events(writeEvent))
	}
	u, err := grace.New(opts...)
	if err != nil {
		return err
	}
	if err := listen(u); err != nil {
		u.Abort()
		<-u.Done()
		return err
	}
	go sickAfterReady(u)
	err = u.Run(context.Background())
	fmt.Printf("begun pid=%d n=%d\n", os.Getpid(), begun.Load())
	return err
}

// writeEvent is slow: a process that exited without waiting for it would lose the last ones.
func writeEvent(e grace.Event) {
	time.Sleep(*events)
	fmt.Printf("event %q pid=%d generation=%d peer=%d at=%d took=%v err=%v\n", e.Kind, e.Pid, e.Generation, e.Peer, e.Time.UnixNano(), e.Took > 0, e.Err != nil)
}

func listen(u *grace.Upgrader) (err error) {
	// One server for all that is plaintext HTTP/1: it has several listeners.
	one := hooked("one")
	n := 0
	add := func(how, network, addr string, serve func(net.Listener)) {
		if addr == "" || err != nil {
			return
		}
		var ln net.Listener
		if ln, err = u.Listen(network, addr); err == nil {
			err = shorten(ln, *backlog)
		}
		if err == nil {
			fmt.Printf("listening %s %s pid=%d\n", how, ln.Addr(), os.Getpid())
			serve(sickListener(ln))
			n++
		}
	}
	http1 := func(ln net.Listener) { u.HTTP(one, ln) }
	add("plain", "tcp", *plain, http1)
	add("unix", "unix", *unix, http1)
	add("limited", "tcp", *limited, func(ln net.Listener) { http1(limit(ln, *most)) })
	add("tls", "tcp", *tls, func(ln net.Listener) {
		srv := hooked("tls")
		if *moveTLS {
			srv.Protocols = new(http.Protocols)
			srv.Protocols.SetHTTP1(true)
		}
		u.HTTPS(srv, ln, *certs+"/cert.pem", *certs+"/key.pem")
	})
	add("h2c", "tcp", *h2c, func(ln net.Listener) {
		srv := hooked("h2c")
		srv.Protocols = new(http.Protocols)
		srv.Protocols.SetHTTP1(true)
		srv.Protocols.SetUnencryptedHTTP2(true)
		u.HTTP(srv, ln)
	})
	if err == nil && n == 0 {
		err = errors.New("nothing to listen on")
	}
	return err
}

// limit lets only so many connections in at once; the next waits in the queue.
func limit(ln net.Listener, n int) net.Listener {
	return &limitListener{Listener: ln, free: make(chan struct{}, n), closed: make(chan struct{})}
}

type limitListener struct {
	net.Listener
	free   chan struct{} // has as many as are in
	closed chan struct{}
	once   sync.Once
}

func (l *limitListener) Accept() (net.Conn, error) {
	select {
	case l.free <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.free
		return nil, err
	}
	return &limitedConn{Conn: c, free: sync.OnceFunc(func() { <-l.free })}, nil
}

func (l *limitListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

type limitedConn struct {
	net.Conn
	free func()
}

func (c *limitedConn) Close() error {
	err := c.Conn.Close()
	c.free()
	return err
}

// CloseWrite is not needed here, but a wrapper that hides it would change
// how net/http closes.
func (c *limitedConn) CloseWrite() error {
	if h, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return errors.ErrUnsupported
}
