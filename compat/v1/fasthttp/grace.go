// Package grace has all names of the first version of grace: those of
// [github.com/julofinance/grace/v3/compat/v1], and [ServerFastHTTP]. It is a module of its
// own, so that a program without fasthttp needs none. docs/compat.md says what behaves
// otherwise.
package grace

import (
	"context"
	"flag"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/julofinance/grace/v3"
	v1 "github.com/julofinance/grace/v3/compat/v1"
)

// idleGrace is how long a connection is kept for one more request when the process ends.
const idleGrace = 5 * time.Second

// ServerFastHTTP serves handler by a server of fasthttp; hport, and the flags -p and -t,
// are as for [Serve]. It returns nil when the process was told to stop, or when a new one
// has taken its place, and what it had begun is finished: the program should exit then.
//
// Connections do not go over to the new process: each is told Connection: close with its
// next answer, and one that is idle for 5 seconds is closed.
func ServerFastHTTP(hport string, handler fasthttp.RequestHandler) error {
	if flag.Lookup("t").Value.String() == "true" {
		return v1.Serve(hport, nil) // only checks the address
	}
	if port := flag.Lookup("p").Value.String(); port != "" {
		hport = ":" + strings.TrimPrefix(port, ":")
	}
	u, err := grace.New()
	if err != nil {
		return err
	}
	network, addr := "tcp", hport
	if path, ok := strings.CutPrefix(hport, "unix:"); ok {
		network, addr = "unix", path
	}
	ln, err := u.Listen(network, addr)
	if err != nil {
		u.Abort()
		<-u.Done()
		return err
	}
	s := &server{u: u, handler: handler}
	u.Server(grace.Server{Listener: ln, Serve: s.serve, Shutdown: s.shutdown})
	return u.Run(context.Background())
}

type server struct {
	u       *grace.Upgrader
	handler fasthttp.RequestHandler
	current atomic.Pointer[fasthttp.Server] // what serves
}

// serve is called again after a roll back, when current may have been shut down.
func (s *server) serve(ln net.Listener) error {
	// The size of the buffer, and so of a request's header, is that of the first version.
	srv := &fasthttp.Server{Handler: s.handle, ReadBufferSize: 16 << 10}
	s.current.Store(srv)
	return srv.Serve(ln)
}

func (s *server) handle(ctx *fasthttp.RequestCtx) {
	s.handler(ctx)
	select {
	case <-s.u.Draining():
		ctx.SetConnectionClose()
	default:
	}
}

// shutdown waits before it closes connections that are idle: their clients may be sending.
func (s *server) shutdown(ctx context.Context) error {
	select {
	case <-time.After(idleGrace):
		return s.current.Load().ShutdownWithContext(ctx)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Config is what [ServeWithConfig] takes.
type Config = v1.Config

// ErrConfigTest is returned by [Listen] if the flag -t was given.
var ErrConfigTest = v1.ErrConfigTest

// Serve is that of [github.com/julofinance/grace/v3/compat/v1], as are the functions that
// follow.
func Serve(hport string, handler http.Handler) error { return v1.Serve(hport, handler) }

// ServeWithConfig is Serve with timeouts.
func ServeWithConfig(hport string, conf Config, handler http.Handler) error {
	return v1.ServeWithConfig(hport, conf, handler)
}

// Run serves on addr, and ends the program if that fails.
func Run(addr string, timeout time.Duration, handler http.Handler) { v1.Run(addr, timeout, handler) }

// RunWithErr is Run that returns the error.
func RunWithErr(addr string, timeout time.Duration, handler http.Handler) error {
	return v1.RunWithErr(addr, timeout, handler)
}

// Listen gives a listener for a server that is not HTTP.
func Listen(hport string) (net.Listener, error) { return v1.Listen(hport) }

// GetListenPort gives the port of the flag -p, or else that of hport.
func GetListenPort(hport string) string { return v1.GetListenPort(hport) }
