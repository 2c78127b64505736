package grace

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"

	"github.com/oklog/run"
)

// Serve listens on addr and serves HTTP with handler h, or with
// [net/http.DefaultServeMux] if h is nil, like [net/http.ListenAndServe]; but
// SIGUSR2 replaces the process by a new one, and SIGTERM, SIGINT and SIGQUIT
// drain and stop. addr is host:port, or unix: and a path.
//
// It returns nil after a clean stop and after a completed upgrade: the program
// should exit then. log.Fatal(grace.Serve(…)) works, but ends with status 1
// after a clean stop too. Errors are those of New, Listen and Ready.
func Serve(addr string, h http.Handler, opts ...Option) error {
	return serve(addr, h, opts, func(u *Upgrader, srv *http.Server, ln net.Listener) Actor {
		return Pair(u.HTTP(srv, ln))
	})
}

// ServeTLS is Serve over TLS, with HTTP/2; the files are as for
// [net/http.ListenAndServeTLS] and are read again by each new process.
func ServeTLS(addr, certFile, keyFile string, h http.Handler, opts ...Option) error {
	return serve(addr, h, opts, func(u *Upgrader, srv *http.Server, ln net.Listener) Actor {
		return Pair(u.HTTPS(srv, ln, certFile, keyFile))
	})
}

func serve(addr string, h http.Handler, opts []Option, actor func(*Upgrader, *http.Server, net.Listener) Actor) error {
	addr = flagAddr(addr)
	if flags.test {
		return checkConfig(addr, opts)
	}
	u, err := New(opts...)
	if err != nil {
		return err
	}
	network, addr := splitAddr(addr)
	ln, err := u.Listen(network, addr)
	if err != nil {
		u.Close()
		<-u.Done()
		if errors.Is(err, ErrStopped) { // told to stop before it served
			return nil
		}
		return err
	}
	return u.Run(actor(u, u.opt.server(addr, h), ln))
}

// server is the one that Serve makes.
func (o *options) server(addr string, h http.Handler) *http.Server {
	return &http.Server{
		Addr: addr, Handler: h,
		ReadTimeout: o.readTimeout, ReadHeaderTimeout: o.readHeaderTimeout,
		WriteTimeout: o.writeTimeout, IdleTimeout: o.idleTimeout,
	}
}

// splitAddr tells a unix socket's path from a TCP address.
func splitAddr(addr string) (network, rest string) {
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		return "unix", path
	}
	if addr == "" {
		return "tcp", ":http"
	}
	return "tcp", addr
}

// An Actor is a task for [Upgrader.Run]: Execute runs it, and Interrupt makes
// Execute return. [Pair] makes one.
type Actor struct {
	Execute   func() error
	Interrupt func(error)
}

// Pair makes an Actor of the two functions that a run.Group's Add takes.
func Pair(execute func() error, interrupt func(error)) Actor { return Actor{execute, interrupt} }

// Actor gives the Upgrader itself as an actor, to be handed to a
// [github.com/oklog/run.Group]. execute calls Ready and returns nil when Done
// is closed, so that the group's other actors end then; its error is Ready's.
// interrupt is [Upgrader.Close].
func (u *Upgrader) Actor() (execute func() error, interrupt func(error)) {
	return func() error {
		if err := u.Ready(); err != nil {
			select {
			case <-u.ctx.Done(): // stopped before it was ready: no error
				<-u.done
				return nil
			default:
			}
			return err
		}
		<-u.done
		return nil
	}, func(error) { u.Close() }
}

// Run runs the Upgrader's own [Upgrader.Actor] and the given ones until the
// first returns, interrupts the others, waits for them and for the drain, and
// returns the first's error. It is for who has no run.Group. An actor may end with
// net.ErrClosed when its socket is closed because this process ends: that is no
// error. An Actor that lacks a function is one; nothing runs then.
func (u *Upgrader) Run(actors ...Actor) error {
	for i, a := range actors {
		if a.Execute == nil || a.Interrupt == nil {
			u.Close()
			<-u.done
			return fmt.Errorf("grace: Run: actor %d of %d has no Execute or no Interrupt; use Pair with two functions", i+1, len(actors))
		}
	}
	var g run.Group
	g.Add(u.Actor())
	for _, a := range actors {
		g.Add(func() error { return u.ended(a.Execute()) }, a.Interrupt)
	}
	err := g.Run()
	u.Close()
	<-u.done
	return err
}

// ended is how an actor has ended. The end of this process closes the sockets,
// before Done: an actor that serves one by itself may be the first to see it.
func (u *Upgrader) ended(err error) error {
	if !errors.Is(err, net.ErrClosed) || u.ctx.Err() == nil {
		return err
	}
	<-u.done
	return nil
}
