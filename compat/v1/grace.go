// Package grace has the names of the first version of grace (gopkg.in/tokopedia/grace.v1
// and github.com/julofinance/grace), so that a program comes over by changing the import
// path. docs/compat.md says what behaves otherwise. A new program uses
// [github.com/julofinance/grace/v3].
//
// Like the first version it adds the flags -p and -t to [flag.CommandLine] when it is
// imported:
//
//	-p port  is listened on, whatever address the program gives Serve or Listen
//	-t       check that address, open nothing, and return: Serve nil, Listen ErrConfigTest
package grace

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/julofinance/grace/v3"
)

// flags are those that the import adds.
var flags struct {
	port string
	test bool
}

func init() {
	flag.StringVar(&flags.port, "p", "", "listen on this `port`, whatever the configuration says")
	flag.BoolVar(&flags.test, "t", false, "check the configuration and exit")
}

// Config is what [ServeWithConfig] takes. A zero field means its default.
type Config struct {
	Timeout          time.Duration // how long a drain may take, see [grace.DrainTimeout]; default 10 seconds
	HTTPReadTimeout  time.Duration // http.Server's ReadTimeout; default 5 seconds
	HTTPWriteTimeout time.Duration // http.Server's WriteTimeout; default 10 seconds
}

// Serve is [ServeWithConfig] with all defaults.
func Serve(hport string, handler http.Handler) error {
	return ServeWithConfig(hport, Config{}, handler)
}

// ServeWithConfig is [grace.Serve] with the timeouts of conf. hport is host:port, or
// unix: and a path; the flag -p comes before it. With -t it returns nil, or what is wrong
// with the address.
func ServeWithConfig(hport string, conf Config, handler http.Handler) error {
	addr := flagAddr(hport)
	if flags.test {
		return checkAddr(addr)
	}
	u, err := grace.New(grace.DrainTimeout(cmp.Or(conf.Timeout, 10*time.Second)))
	if err != nil {
		return err
	}
	return u.ListenAndServe(conf.server(addr, handler))
}

func (c Config) server(addr string, h http.Handler) *http.Server {
	return &http.Server{
		Addr: addr, Handler: h,
		ReadTimeout:  cmp.Or(c.HTTPReadTimeout, 5*time.Second),
		WriteTimeout: cmp.Or(c.HTTPWriteTimeout, 10*time.Second),
	}
}

// Run serves handler on addr until the process was told to stop, or a new one has taken
// its place, and what it had begun is finished, which may take timeout; 0 or less: as long
// as it needs. An error is logged and ends the program with status 1, as it does in the
// first version; [RunWithErr] returns it. The server has no timeouts of its own, and the
// flags -p and -t don't count here, as before.
func Run(addr string, timeout time.Duration, handler http.Handler) {
	if err := RunWithErr(addr, timeout, handler); err != nil {
		log.Fatal(err)
	}
}

// RunWithErr is [Run] that returns the error.
func RunWithErr(addr string, timeout time.Duration, handler http.Handler) error {
	if timeout <= 0 {
		timeout = forever
	}
	return grace.Serve(addr, handler, grace.DrainTimeout(timeout))
}

// forever is a drain without an end.
const forever = 10 * 365 * 24 * time.Hour

// ErrConfigTest is returned by [Listen] if the flag -t was given: the address is fine,
// nothing is to be served, the program should exit with status 0.
var ErrConfigTest = errors.New("the configuration was only to be checked, and is fine")

// GetListenPort gives the port of the flag -p or, without one, that of hport,
// or "" if that has none.
func GetListenPort(hport string) string {
	if _, port, err := net.SplitHostPort(flagAddr(hport)); err == nil {
		return port
	}
	return ""
}

// Listen gives a listener on hport for a server that is not HTTP: the one that
// was handed over, or a new one; hport is as for [Serve]. The first call makes the
// process's [grace.Upgrader] with its defaults, so that [Serve] can't be called besides;
// a program that wants both calls [grace.New].
//
// The first Accept says that the process is ready ([grace.Upgrader.Ready]): all
// listeners should be there by then. Accept returns an error that is
// net.ErrClosed when the process has handed over, or was told to stop, and all
// connections that the listener has accepted are closed, or [grace.DrainTimeout] is
// up; the program should exit then.
func Listen(hport string) (net.Listener, error) {
	addr := flagAddr(hport)
	if flags.test {
		return nil, cmp.Or(checkAddr(addr), fmt.Errorf("grace: %w", ErrConfigTest))
	}
	u, err := sharedUpgrader()
	if err != nil {
		return nil, err
	}
	network := "tcp"
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		network, addr = "unix", path
	}
	ln, err := u.Listen(network, addr)
	if err != nil {
		return nil, err
	}
	// Its connections are waited for; the caller itself serves them.
	u.Server(grace.Server{Listener: ln, Serve: func(net.Listener) error { return nil }})
	return &listener{ln, u}, nil
}

// flagAddr is addr, or what the flag -p says.
func flagAddr(addr string) string {
	if flags.port == "" {
		return addr
	}
	return ":" + strings.TrimPrefix(flags.port, ":")
}

// checkAddr is all that the flag -t does.
func checkAddr(addr string) error {
	if !strings.HasPrefix(addr, "unix:") {
		_, port, err := net.SplitHostPort(cmp.Or(addr, ":http"))
		if err == nil {
			_, err = net.LookupPort("tcp", port)
		}
		if err != nil {
			return fmt.Errorf("grace: address %q: %w", addr, err)
		}
	}
	slog.Info("grace: the configuration is fine; nothing is served, as -t says", "address", addr)
	return nil
}

// shared is the Upgrader of all listeners of the function Listen; mu guards it.
var shared struct {
	mu sync.Mutex
	u  *grace.Upgrader
}

func sharedUpgrader() (u *grace.Upgrader, err error) {
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.u != nil {
		select {
		case <-shared.u.Done():
		default:
			return shared.u, nil
		}
	}
	if u, err = grace.New(); err == nil {
		shared.u = u
	}
	return u, err
}

type listener struct {
	net.Listener
	u *grace.Upgrader
}

func (l *listener) Accept() (net.Conn, error) {
	err := l.u.Ready()
	if errors.Is(err, grace.ErrStopped) {
		<-l.u.Done()
		err = net.ErrClosed
	}
	if err != nil {
		return nil, &net.OpError{Op: "accept", Net: l.Addr().Network(), Addr: l.Addr(), Err: err}
	}
	return l.Listener.Accept()
}
