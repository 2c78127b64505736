package grace

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// The names by which the first version of this package is known, for programs
// that come from it; docs/from-v1.md says what has changed.

// Config is what [ServeWithConfig] takes. A zero field means its default.
type Config struct {
	Timeout          time.Duration // DrainTimeout; default 10 seconds
	HTTPReadTimeout  time.Duration // http.Server's ReadTimeout; default 5 seconds
	HTTPWriteTimeout time.Duration // http.Server's WriteTimeout; default 10 seconds
}

// ServeWithConfig is [Serve] with the timeouts of conf, which a program that
// wants more than these gives Serve as options.
func ServeWithConfig(hport string, conf Config, handler http.Handler) error {
	return serve(hport, []Option{DrainTimeout(cmp.Or(conf.Timeout, 10*time.Second))}, func(u *Upgrader, ln net.Listener) {
		u.HTTP(conf.server(hport, handler), ln)
	})
}

func (c Config) server(addr string, h http.Handler) *http.Server {
	return &http.Server{
		Addr: addr, Handler: h,
		ReadTimeout:  cmp.Or(c.HTTPReadTimeout, 5*time.Second),
		WriteTimeout: cmp.Or(c.HTTPWriteTimeout, 10*time.Second),
	}
}

// ErrConfigTest is returned by [Listen] if the flag -t was given: the
// configuration is fine, nothing is to be served, the program should exit with
// status 0. [Serve] and its relatives return nil then.
var ErrConfigTest = errors.New("the configuration was only to be checked, and is fine")

// flags are those that RegisterFlags has registered.
var flags struct {
	port string
	test bool
}

// RegisterFlags adds the flags -p and -t of the first version to fs, or to
// [flag.CommandLine] if fs is nil. They are not there otherwise.
//
// -p is a port that is listened on whatever address the program gives [Serve]
// and its relatives, or [Listen]. -t makes them check that address and the
// options, open nothing, and return: Serve nil, Listen [ErrConfigTest].
func RegisterFlags(fs *flag.FlagSet) {
	if fs == nil {
		fs = flag.CommandLine
	}
	fs.StringVar(&flags.port, "p", "", "listen on this `port`, whatever the configuration says")
	fs.BoolVar(&flags.test, "t", false, "check the configuration and exit")
}

// GetListenPort gives the port of the flag -p or, without one, that of hport,
// or "" if that has none.
func GetListenPort(hport string) string {
	if _, port, err := net.SplitHostPort(flagAddr(hport)); err == nil {
		return port
	}
	return ""
}

// flagAddr is addr, or what the flag -p says.
func flagAddr(addr string) string {
	if flags.port == "" {
		return addr
	}
	return ":" + strings.TrimPrefix(flags.port, ":")
}

// checkConfig is all that the flag -t does: the options, and the address.
func checkConfig(addr string, opts []Option) error {
	o, err := newOptions(opts)
	if err != nil {
		return err
	}
	network, addr := splitAddr(addr, "http")
	if network == "tcp" {
		_, port, err := net.SplitHostPort(addr)
		if err == nil {
			_, err = net.LookupPort(network, port)
		}
		if err != nil {
			return fmt.Errorf("grace: address %q: %w", addr, err)
		}
	}
	if theMasterErr != nil {
		return theMasterErr
	}
	o.log.Info("grace: the configuration is fine; nothing is served, as -t says", "address", addr)
	o.flushLog()
	return nil
}

// shared is the Upgrader of all listeners of the function Listen.
var shared struct {
	mu sync.Mutex
	u  *Upgrader
}

// Listen gives a listener on hport for a server that is not HTTP: the one that
// was handed over, or a new one; hport is as for [Serve]. The process's
// [Upgrader] is made with its defaults by the first call; a program that wants
// options, or [Serve] in the same process, calls [New].
//
// The first Accept says that the process is ready ([Upgrader.Ready]): all
// listeners should be there by then. Accept returns an error that is
// net.ErrClosed when the process has handed over, or was told to stop, and all
// connections that the listener has accepted are closed, or [DrainTimeout] is
// up; the program should exit then.
func Listen(hport string) (net.Listener, error) {
	addr := flagAddr(hport)
	if flags.test {
		if err := checkConfig(addr, nil); err != nil {
			return nil, err
		}
		return nil, fmt.Errorf("grace: %w", ErrConfigTest)
	}
	u, err := sharedUpgrader()
	if err != nil {
		return nil, err
	}
	ln, err := u.Listen(splitAddr(addr, "http"))
	if err != nil {
		return nil, err
	}
	// Its connections are waited for; the caller itself serves them.
	u.Server(Server{Listener: ln, Serve: func(net.Listener) error { return nil }})
	return &sharedListener{ln, u}, nil
}

func sharedUpgrader() (u *Upgrader, err error) {
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.u != nil {
		select {
		case <-shared.u.over:
		default:
			return shared.u, nil
		}
	}
	if u, err = New(); err == nil {
		shared.u = u
	}
	return u, err
}

type sharedListener struct {
	net.Listener
	u *Upgrader
}

func (l *sharedListener) Accept() (net.Conn, error) {
	err := l.u.Ready()
	if errors.Is(err, ErrStopped) {
		<-l.u.Done()
		err = net.ErrClosed
	}
	if err != nil {
		return nil, &net.OpError{Op: "accept", Net: l.Addr().Network(), Addr: l.Addr(), Err: err}
	}
	return l.Listener.Accept()
}
