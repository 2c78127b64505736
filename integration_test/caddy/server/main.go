//go:build linux

// Server is a program in which Caddy serves, and which replaces itself.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddytls"

	"github.com/julofinance/grace/v3"
	"github.com/julofinance/grace/v3/internal/load"
)

// idleGrace is how long a connection is kept for one more request when the process ends.
const idleGrace = time.Second

func main() {
	how := flag.String("how", "handler", "handler: Upgrader.HTTP serves what Caddy answers; network: Caddy serves a listener of the Upgrader")
	die := flag.String("die", "", "a file: where it is there, a process that was started by another dies when it is ready")
	pidFile := flag.String("pidfile", "", "PID file")
	flag.StringVar(&certs, "certs", "", "a directory with cert.pem and key.pem: serve TLS")
	flag.Parse()
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, nil)).With("from", os.Getpid()))
	go func() { // the test process is gone
		io.Copy(io.Discard, os.Stdin)
		os.Exit(99)
	}()
	u, err := grace.New(grace.PIDFile(*pidFile), grace.Probation(100*time.Millisecond), grace.IdleGrace(idleGrace))
	if err != nil {
		log.Fatal(err)
	}
	ln, err := u.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("listening %s pid=%d\n", ln.Addr(), os.Getpid())
	if *how == "network" {
		err = network(u, ln)
	} else {
		err = handler(u, ln)
	}
	if err != nil {
		log.Fatal(err)
	}
	if _, err := os.Stat(*die); err == nil && u.HasParent() { // before it has accepted anything, which would be lost with it
		if err := u.Ready(); err != nil {
			log.Fatal(err)
		}
		os.Exit(3)
	}
	err = u.Run(context.Background())
	caddy.Stop()
	if err != nil {
		log.Fatal(err)
	}
}

// handler lets u serve, and Caddy answer: its server of that name is an http.Handler, and
// listens on nothing itself.
func handler(u *grace.Upgrader, ln net.Listener) error {
	if err := caddy.Run(config(&caddyhttp.Server{Routes: routes("load")})); err != nil {
		return err
	}
	app, err := caddy.ActiveContext().App("http")
	if err != nil {
		return err
	}
	answers := app.(*caddyhttp.App).Servers["main"]
	srv := &http.Server{
		Handler:           answers,
		ReadTimeout:       time.Duration(answers.ReadTimeout),
		ReadHeaderTimeout: time.Duration(answers.ReadHeaderTimeout),
		WriteTimeout:      time.Duration(answers.WriteTimeout),
		IdleTimeout:       time.Duration(answers.IdleTimeout),
		MaxHeaderBytes:    answers.MaxHeaderBytes,
	}
	if certs == "" {
		u.HTTP(srv, ln)
		return nil
	}
	srv.TLSConfig = answers.TLSConnPolicies.TLSConfig(caddy.ActiveContext())
	u.HTTPS(srv, ln, "", "")
	return nil
}

// network lets Caddy serve ln, which it opens as grace/main.
func network(u *grace.Upgrader, ln net.Listener) error {
	s := &served{u: u, config: config(&caddyhttp.Server{Listen: []string{"grace/main:0"}, Routes: routes("last_answer", "load")})}
	caddy.RegisterNetwork("grace", s.open)
	upgrader = u
	if err := s.start(ln); err != nil { // before the process is ready: a configuration that is wrong fails the upgrade
		return err
	}
	u.Server(grace.Server{Listener: ln, Serve: s.serve, Shutdown: s.shutdown})
	return nil
}

// A served is a listener that Caddy serves.
type served struct {
	u      *grace.Upgrader
	config *caddy.Config

	mu sync.Mutex
	ln *listener // what Caddy has opened, or is to open; guarded by mu
}

func (s *served) start(ln net.Listener) error {
	s.mu.Lock()
	s.ln = &listener{Listener: ln, ended: make(chan struct{})}
	s.mu.Unlock()
	return caddy.Run(s.config)
}

// open is called by Caddy.
func (s *served) open(context.Context, string, string, string, uint, net.ListenConfig) (any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ln, nil
}

// serve lasts as long as Caddy accepts. It is called again after a roll back: Caddy may
// have been stopped then.
func (s *served) serve(ln net.Listener) error {
	s.mu.Lock()
	current := s.ln
	s.mu.Unlock()
	select {
	case <-current.ended:
		if err := s.start(ln); err != nil {
			return err
		}
		return s.serve(ln)
	default:
	}
	<-current.ended
	return nil
}

// shutdown waits before it closes connections that are idle: their clients may be sending.
func (s *served) shutdown(ctx context.Context) error {
	select {
	case <-time.After(idleGrace):
		err := caddy.Stop()
		fmt.Printf("Caddy has stopped pid=%d\n", os.Getpid())
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// A listener knows when nothing is accepted from it any more.
type listener struct {
	net.Listener
	once  sync.Once
	ended chan struct{}
}

func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		l.once.Do(func() { close(l.ended) })
	}
	return c, err
}

// certs is where the certificate is; empty: no TLS.
var certs string

// config is a configuration with this server, that writes nothing and asks for no
// certificates.
func config(srv *caddyhttp.Server) *caddy.Config {
	srv.AutoHTTPS = &caddyhttp.AutoHTTPSConfig{Disabled: true}
	srv.Protocols = []string{"h1", "h2"}
	apps := caddy.ModuleMap{}
	if certs != "" {
		srv.TLSConnPolicies = caddytls.ConnectionPolicies{{}}
		files := caddytls.FileLoader{{Certificate: filepath.Join(certs, "cert.pem"), Key: filepath.Join(certs, "key.pem")}}
		apps["tls"] = toJSON(caddytls.TLS{CertificatesRaw: caddy.ModuleMap{"load_files": toJSON(files)}})
	}
	apps["http"] = toJSON(caddyhttp.App{Servers: map[string]*caddyhttp.Server{"main": srv}})
	no := false
	return &caddy.Config{
		Admin:   &caddy.AdminConfig{Disabled: true, Config: &caddy.ConfigSettings{Persist: &no}},
		AppsRaw: apps,
	}
}

func toJSON(v any) json.RawMessage {
	b, err := json.Marshal(v)
	if err != nil {
		log.Fatal(err)
	}
	return b
}

// routes is one route, of handlers of these names.
func routes(handlers ...string) caddyhttp.RouteList {
	var r caddyhttp.Route
	for _, name := range handlers {
		r.HandlersRaw = append(r.HandlersRaw, toJSON(map[string]string{"handler": name}))
	}
	return caddyhttp.RouteList{r}
}

func init() {
	caddy.RegisterModule(loadHandler{})
	caddy.RegisterModule(lastAnswer{})
}

// loadHandler is what package load asks for.
type loadHandler struct{}

func (loadHandler) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.load", New: func() caddy.Module { return new(loadHandler) }}
}

var loaded = load.Handler()

func (loadHandler) ServeHTTP(w http.ResponseWriter, r *http.Request, _ caddyhttp.Handler) error {
	loaded.ServeHTTP(w, r)
	return nil
}

// upgrader is that of the process; a module of Caddy can't be given it.
var upgrader *grace.Upgrader

// lastAnswer tells clients of a process that drains to connect anew. Caddy's Stop closes
// what is idle at that moment.
type lastAnswer struct{}

func (lastAnswer) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.last_answer", New: func() caddy.Module { return new(lastAnswer) }}
}

func (lastAnswer) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	select {
	case <-upgrader.Draining():
		w.Header().Set("Connection", "close")
	default:
	}
	return next.ServeHTTP(w, r)
}
