// Package gracehttp has the names of github.com/facebookgo/grace/gracehttp (now
// github.com/facebookarchive/grace/gracehttp) over [github.com/julofinance/grace/v3]:
// a program comes over by changing the import path.
//
//	err := gracehttp.Serve(
//		&http.Server{Addr: ":8080", Handler: public},
//		&http.Server{Addr: ":8081", Handler: admin},
//	)
//
// SIGUSR2 replaces the process by a new one, SIGTERM and SIGINT drain and stop.
// Idle connections are handed over, and a new process that fails takes nothing down;
// docs/compat.md lists what behaves otherwise.
package gracehttp

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/julofinance/grace/v3"
)

// stopTimeout is how long a process that ends waits for requests, as the original's does.
const stopTimeout = time.Minute

var (
	logger  atomic.Pointer[log.Logger]
	verbose *bool // nil: RegisterFlags was not called
)

// SetLogger sets what the start and the end of each process are written to. Default,
// and with nil: nothing. What grace itself logs goes to [log/slog.Default].
func SetLogger(l *log.Logger) { logger.Store(l) }

// RegisterFlags adds the flag -gracehttp.log to fs, or to [flag.CommandLine] if fs is
// nil: early versions of the original, which had no SetLogger, added it when they were
// imported. It is true by default; the standard logger is written to then, unless
// SetLogger has set another.
func RegisterFlags(fs *flag.FlagSet) {
	if fs == nil {
		fs = flag.CommandLine
	}
	verbose = fs.Bool("gracehttp.log", true, "write the start and the end of each process to the log")
}

func logf(format string, args ...any) {
	l := logger.Load()
	if l == nil && verbose != nil && *verbose {
		l = log.Default()
	}
	if l != nil {
		l.Printf(format, args...)
	}
}

type app struct {
	servers         []*http.Server
	preStartProcess func() error
}

type option func(*app)

// PreStartProcess sets a function that is called before each new process is started, to
// free what that needs. Its error refuses the upgrade, and this process serves on.
func PreStartProcess(hook func() error) option {
	return func(a *app) { a.preStartProcess = hook }
}

// Serve serves each of the servers on its TCP address Addr, over TLS if it has a
// TLSConfig. It returns nil when the process was told to stop, or when a new one has
// taken its place, and what it had begun is finished: the program should exit then. A
// server that fails ends the others, and its error is returned.
//
// One process has one Serve.
func Serve(servers ...*http.Server) error { return ServeWithOptions(servers) }

// ServeWithOptions is Serve with options.
func ServeWithOptions(servers []*http.Server, options ...option) error {
	a := &app{servers: servers}
	for _, opt := range options {
		opt(a)
	}
	return a.run()
}

func (a *app) run() error {
	opts := []grace.Option{
		grace.UpgradeSignals(upgradeSignals...), grace.StopSignals(syscall.SIGINT, syscall.SIGTERM), grace.DrainTimeout(stopTimeout),
	}
	if hook := a.preStartProcess; hook != nil {
		opts = append(opts, grace.BeforeUpgrade(func(context.Context) error { return hook() }))
	}
	u, err := grace.New(opts...)
	if err != nil {
		return err
	}
	addrs, err := a.listen(u)
	if err != nil {
		u.Abort()
		<-u.Done()
		if errors.Is(err, grace.ErrStopped) { // told to stop before it served
			return nil
		}
		return err
	}
	if u.HasParent() {
		logf("Graceful handoff of %s with new pid %d and old pid %d", addrs, os.Getpid(), os.Getppid())
	} else {
		logf("Serving %s with pid %d", addrs, os.Getpid())
	}
	if err := u.Run(context.Background()); err != nil {
		return err
	}
	logf("Exiting pid %d.", os.Getpid())
	return nil
}

// listen gives all servers to u, and their addresses as text.
func (a *app) listen(u *grace.Upgrader) (string, error) {
	var addrs []string
	for i, srv := range a.servers {
		if srv == nil {
			return "", fmt.Errorf("gracehttp: server %d of %d is nil", i+1, len(a.servers))
		}
		ln, err := u.Listen("tcp", srv.Addr)
		if err != nil {
			return "", err
		}
		addrs = append(addrs, ln.Addr().String())
		serve(u, srv, ln)
	}
	return strings.Join(addrs, ", "), nil
}

func serve(u *grace.Upgrader, srv *http.Server, ln net.Listener) {
	if srv.TLSConfig == nil {
		u.HTTP(srv, ln)
		return
	}
	// HTTP/2 only where NextProtos names it: the original never added it.
	if srv.Protocols == nil && !slices.Contains(srv.TLSConfig.NextProtos, "h2") {
		srv.Protocols = new(http.Protocols)
		srv.Protocols.SetHTTP1(true)
	}
	u.HTTPS(srv, ln, "", "")
}
