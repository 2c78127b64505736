package grace

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
)

// Serve listens on addr and serves HTTP with handler h, or with
// [net/http.DefaultServeMux] if h is nil, like [net/http.ListenAndServe]; but
// SIGUSR2 replaces the process by a new one, and SIGTERM, SIGINT and SIGQUIT
// drain and stop. addr is host:port, or unix: and a path. For timeouts and other
// settings of an [http.Server] use [ListenAndServe].
//
// It returns nil after a clean stop and after a completed upgrade: the program
// should exit then. log.Fatal(grace.Serve(…)) works, but ends with status 1
// after a clean stop too. Errors are those of New, Listen and Ready.
func Serve(addr string, h http.Handler, opts ...Option) error {
	return serveWith(addr, opts, func(u *Upgrader, ln net.Listener) {
		u.HTTP(&http.Server{Addr: addr, Handler: h}, ln)
	})
}

// ServeTLS is Serve over TLS, with HTTP/2; the files are as for
// [net/http.ListenAndServeTLS] and are read again by each new process.
func ServeTLS(addr, certFile, keyFile string, h http.Handler, opts ...Option) error {
	return serveWith(addr, opts, func(u *Upgrader, ln net.Listener) {
		u.HTTPS(&http.Server{Addr: addr, Handler: h}, ln, certFile, keyFile)
	})
}

func serveWith(addr string, opts []Option, add func(*Upgrader, net.Listener)) error {
	u, err := New(opts...)
	if err != nil {
		return err
	}
	return u.runWith(func() error {
		ln, err := u.Listen(splitAddr(addr, "http"))
		if err != nil {
			return err
		}
		add(u, ln)
		return nil
	})
}

// ListenAndServe serves each of the servers on its Addr, as
// [net/http.Server.ListenAndServe] does, or as ListenAndServeTLS if its TLSConfig has
// Certificates, GetCertificate or GetConfigForClient; and replaces itself as [Serve]
// does. An Addr may be unix: and a path. It returns as Serve does.
//
// It makes an [Upgrader] with the default options; [Upgrader.ListenAndServe] does the
// same with one that has others. Each server is used as by [Upgrader.HTTP].
func ListenAndServe(servers ...*http.Server) error {
	u, err := New()
	if err != nil {
		return err
	}
	return u.ListenAndServe(servers...)
}

// ListenAndServe listens on the Addr of each of the servers, gives them to u by
// [Upgrader.HTTP] or [Upgrader.HTTPS] as the function [ListenAndServe] does, and calls
// [Upgrader.Run]. If an address can't be listened on, nothing is served, and u ends.
func (u *Upgrader) ListenAndServe(servers ...*http.Server) error {
	return u.runWith(func() error {
		if len(servers) == 0 {
			return errors.New("grace: ListenAndServe: no server was given")
		}
		for i, srv := range servers {
			if srv == nil {
				return fmt.Errorf("grace: ListenAndServe: server %d of %d is nil", i+1, len(servers))
			}
		}
		for _, srv := range servers {
			secure, service := hasCertificate(srv), "http"
			if secure {
				service = "https"
			}
			ln, err := u.Listen(splitAddr(srv.Addr, service))
			switch {
			case err != nil:
				return err
			case secure:
				u.HTTPS(srv, ln, "", "")
			default:
				u.HTTP(srv, ln)
			}
		}
		return nil
	})
}

// hasCertificate reports whether ServeTLS of srv needs no files: the condition is that
// of net/http's setupTLSConfig.
func hasCertificate(srv *http.Server) bool {
	c := srv.TLSConfig
	return c != nil && (len(c.Certificates) > 0 || c.GetCertificate != nil || c.GetConfigForClient != nil)
}

// runWith runs the servers once add has added some. Its error ends this process's
// part, unless it was told to stop before it served.
func (u *Upgrader) runWith(add func() error) error {
	if err := add(); err != nil {
		u.Abort()
		<-u.Done()
		if errors.Is(err, ErrStopped) {
			return nil
		}
		return err
	}
	return u.Run(context.Background())
}

// splitAddr tells a unix socket's path from a TCP address; service is the port of an
// empty one.
func splitAddr(addr, service string) (network, rest string) {
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		return "unix", path
	}
	if addr == "" {
		return "tcp", ":" + service
	}
	return "tcp", addr
}
