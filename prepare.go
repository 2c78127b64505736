package grace

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
)

// Prepare is [Upgrader.HTTP] for a server that something else runs: a framework that is
// given srv and a listener and calls srv.Serve or srv.ServeTLS itself. Give it the listener
// that Prepare returns, in place of ln, and it may set up srv as it likes before it serves.
// [Upgrader.Run] or [Upgrader.Actor] is called as for other servers.
//
// The call of Serve returns [net/http.ErrServerClosed] when the drain begins, as it does at
// Shutdown: no error, and no reason to exit; the program waits for Run, or Done. If the
// upgrade is rolled back, srv's connections and handler serve on all the same. What ends
// the server by itself is returned as it is.
//
// Whether TLS is served is what the framework decides. The certificate must be in
// srv.TLSConfig then (Certificates, GetCertificate or GetConfigForClient), and not only in
// files that are given to ServeTLS. srv.Shutdown and srv.Close end all that srv serves, as
// with HTTP; to close the listener ends only Serve.
//
// No connection ever comes out of the listener: the library accepts, and hands connections
// to srv, when Serve has called its Accept. So it must be given to srv, and to nothing that
// counts or inspects connections; such a wrapper belongs around ln.
func (u *Upgrader) Prepare(srv *http.Server, ln net.Listener) (net.Listener, error) {
	if srv == nil || ln == nil {
		return nil, errors.New("grace: Prepare: the server or the listener is nil")
	}
	return &prepared{Listener: ln, u: u, srv: srv, ended: make(chan error, 1), closed: make(chan struct{})}, nil
}

// A prepared is a listener from which nothing is accepted: Accept lasts as long as the
// server is served from the one that it stands for.
type prepared struct {
	net.Listener
	u     *Upgrader
	srv   *http.Server
	ended chan error // how serving has ended

	begin, end sync.Once
	closed     chan struct{}
}

// Accept serves, and returns how that has ended.
func (p *prepared) Accept() (net.Conn, error) {
	p.begin.Do(p.serve)
	select {
	case err := <-p.ended:
		p.ended <- err // for a call that comes later
		return nil, err
	case <-p.closed:
		return nil, net.ErrClosed // Serve makes ErrServerClosed of it
	}
}

// serve gives the server to the Upgrader. It runs in the goroutine of srv.Serve, when all
// of srv is set, and before any connection is accepted.
func (p *prepared) serve() {
	give := p.u.HTTP
	if belowTLS() {
		if !hasCertificate(p.srv) {
			p.ended <- fmt.Errorf("grace: Prepare: %v: ServeTLS was given its certificate in files; put it in the server's TLSConfig", p.Addr())
			return
		}
		give = func(srv *http.Server, ln net.Listener) (func() error, func(error)) { return p.u.HTTPS(srv, ln, "", "") }
	}
	execute, _ := give(p.srv, p.Listener)
	go func() {
		err := execute()
		if err == nil {
			err = http.ErrServerClosed
		}
		p.ended <- err
	}()
}

// belowTLS reports whether Accept was called by the listener that ServeTLS has put before
// this one.
func belowTLS() bool {
	callers := make([]uintptr, 16)
	frames := runtime.CallersFrames(callers[:runtime.Callers(2, callers)])
	for {
		f, more := frames.Next()
		if strings.HasPrefix(f.Function, "crypto/tls.(*listener).Accept") {
			return true
		}
		if !more {
			return false
		}
	}
}

// Close is called by srv.Shutdown, which waits for Serve to return, and by Serve then. The
// listener that this one stands for is closed when the process ends, or by the program's
// own Shutdown: see onShutdown.
func (p *prepared) Close() error {
	p.end.Do(func() { close(p.closed) })
	return nil
}
