// Package endless has the names of github.com/fvbock/endless over
// [github.com/julofinance/grace/v3]: a program comes over by changing the import path.
//
//	err := endless.ListenAndServe("localhost:4242", handler)
//
// SIGHUP replaces the process by a new one, SIGTERM and SIGINT drain and stop, SIGUSR2
// cuts off what a process that drains has not finished. Idle connections are handed
// over, and a new process that fails takes nothing down; docs/compat.md lists what
// behaves otherwise.
package endless

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/julofinance/grace/v3"
)

// When a hook is called, see RegisterSignalHook of what [NewServer] gives; and the states that
// the original has, which nothing here takes or gives.
const (
	PRE_SIGNAL = iota
	POST_SIGNAL

	STATE_INIT
	STATE_RUNNING
	STATE_SHUTTING_DOWN
	STATE_TERMINATE
)

// What [NewServer] sets of a server. A zero value is net/http's default.
var (
	DefaultReadTimeOut    time.Duration
	DefaultWriteTimeOut   time.Duration
	DefaultMaxHeaderBytes int
)

// DefaultHammerTime is how long a process that ends waits for requests; then it cuts
// them off. Below 0: for ever, or until it gets SIGUSR2. It is looked at when the first
// server of the process begins.
var DefaultHammerTime = 60 * time.Second

// An endlessServer is an [http.Server] that is handed over. Its fields are to be set
// before it begins.
type endlessServer struct {
	http.Server

	// EndlessListener is what Serve serves; the ListenAndServe methods set it.
	EndlessListener net.Listener
	// SignalHooks has the functions to be called at a signal: by PRE_SIGNAL or
	// POST_SIGNAL, then by the signal.
	SignalHooks map[int]map[os.Signal][]func()
	// BeforeBegin is called with Addr once the server listens. Default: pid and
	// address are logged.
	BeforeBegin func(add string)

	hooksMu sync.Mutex // guards SignalHooks once the server has begun
	secure  bool       // it speaks TLS
}

// NewServer gives a server for this address, with the Default variables' settings. It
// does nothing before one of its Serve methods is called.
func NewServer(addr string, handler http.Handler) *endlessServer {
	srv := &endlessServer{
		Server: http.Server{
			Addr: addr, Handler: handler,
			ReadTimeout: DefaultReadTimeOut, WriteTimeout: DefaultWriteTimeOut, MaxHeaderBytes: DefaultMaxHeaderBytes,
		},
		SignalHooks: map[int]map[os.Signal][]func(){PRE_SIGNAL: {}, POST_SIGNAL: {}},
		BeforeBegin: func(addr string) { log.Println(os.Getpid(), addr) },
	}
	for _, hooks := range srv.SignalHooks {
		for _, s := range hookableSignals {
			hooks[s] = []func(){}
		}
	}
	coming.add(srv)
	return srv
}

// ListenAndServe serves HTTP on the TCP address addr. It returns nil when the process
// was told to stop, or when a new one has taken its place, and what it had begun is
// finished: the program should exit then.
func ListenAndServe(addr string, handler http.Handler) error {
	return NewServer(addr, handler).ListenAndServe()
}

// ListenAndServeTLS is ListenAndServe over TLS; the files are as for
// [net/http.ListenAndServeTLS] and are read again by each new process.
func ListenAndServeTLS(addr string, certFile string, keyFile string, handler http.Handler) error {
	return NewServer(addr, handler).ListenAndServeTLS(certFile, keyFile)
}

// ListenAndServe is [ListenAndServe] for srv.Addr, or ":http" if that is empty.
func (srv *endlessServer) ListenAndServe() error { return srv.listenAndServe(":http") }

// ListenAndServeTLS is [ListenAndServeTLS] for srv.Addr, or ":https" if that is empty.
// The certificate is added to srv.TLSConfig; HTTP/2 is spoken if its NextProtos names it.
func (srv *endlessServer) ListenAndServeTLS(certFile, keyFile string) error {
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return srv.failed(err)
	}
	config := &tls.Config{}
	if srv.TLSConfig != nil {
		config = srv.TLSConfig.Clone()
	}
	config.Certificates = []tls.Certificate{cert}
	srv.TLSConfig, srv.secure = config, true
	if srv.Protocols == nil && !slices.Contains(config.NextProtos, "h2") {
		srv.Protocols = new(http.Protocols)
		srv.Protocols.SetHTTP1(true)
	}
	return srv.listenAndServe(":https")
}

func (srv *endlessServer) listenAndServe(addr string) error {
	if srv.Addr != "" {
		addr = srv.Addr
	}
	p, err := theProcess()
	if err != nil {
		return srv.failed(err)
	}
	ln, err := p.u.Listen("tcp", addr)
	if err != nil {
		err = srv.failed(err)
		if errors.Is(err, grace.ErrStopped) { // told to stop before it served
			return nil
		}
		return err
	}
	srv.EndlessListener = ln
	p.running.add(srv) // BeforeBegin may tell others that signals are heeded
	if srv.BeforeBegin != nil {
		srv.BeforeBegin(srv.Addr)
	}
	return srv.Serve()
}

// Serve serves EndlessListener, and returns as [ListenAndServe] does.
func (srv *endlessServer) Serve() error {
	if srv.EndlessListener == nil {
		return srv.failed(errors.New("endless: Serve: EndlessListener is nil; use ListenAndServe, or set it"))
	}
	p, err := theProcess()
	if err != nil {
		return srv.failed(err)
	}
	return p.serve(srv)
}

// failed gives up srv, which will not begin.
func (srv *endlessServer) failed(err error) error {
	coming.remove(srv)
	endIfIdle()
	return err
}

// RegisterSignalHook adds a function that is called before (PRE_SIGNAL) or after
// (POST_SIGNAL) what this package does at that signal: SIGHUP, SIGUSR1, SIGUSR2, SIGINT,
// SIGTERM or SIGTSTP. After SIGHUP means when the upgrade has succeeded or failed.
func (srv *endlessServer) RegisterSignalHook(prePost int, sig os.Signal, f func()) error {
	if prePost != PRE_SIGNAL && prePost != POST_SIGNAL {
		return fmt.Errorf("endless: RegisterSignalHook: %d is neither PRE_SIGNAL nor POST_SIGNAL", prePost)
	}
	if !slices.Contains(hookableSignals, sig) {
		return fmt.Errorf("endless: RegisterSignalHook: %v has no hooks; have %v", sig, hookableSignals)
	}
	srv.hooksMu.Lock()
	defer srv.hooksMu.Unlock()
	srv.SignalHooks[prePost][sig] = append(srv.SignalHooks[prePost][sig], f)
	return nil
}

func (srv *endlessServer) runHooks(prePost int, sig os.Signal) {
	srv.hooksMu.Lock()
	hooks := slices.Clone(srv.SignalHooks[prePost][sig])
	srv.hooksMu.Unlock()
	for _, f := range hooks {
		f()
	}
}
