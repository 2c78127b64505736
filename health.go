package grace

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/julofinance/grace/v3/internal/sockets"
)

// Whether a new process that lives also works, as far as the old process can see it while
// it stands by. What is seen is told to the machine by evProbationOver.

// HealthCheck is called in the old process when the new one is ready, to find a version
// that starts and does not work. An error, or a panic, and the new process is killed and the
// upgrade rolled back, with the reason [ErrUnhealthy].
//
// Each connection of the client c is given to the new process, and reaches no other. To
// that process it is one that it has just accepted, from the loopback interface, so that TLS
// begins with a handshake. The host of a URL is what the Host header and the certificate's
// check see; it is not resolved. If the service has several listeners, the URL's port says
// which is meant. c follows redirects and verifies certificates as any http.Client;
// c.Transport is an [*http.Transport], whose TLSClientConfig may be set, for a private
// certificate authority, say.
//
// The check must return within [Probation], or within 5 seconds if that is longer. Its
// context ends then, or when the new process is dead, and the connections are closed.
// Meanwhile the new process accepts, and the old one has the connections that it had: the
// sooner a check fails, the fewer clients meet the new version.
//
// It is the old version's check that runs. A new version that is too old to be given
// connections is not checked, and the log says so. The option may be given several times;
// all checks run at once, and all must pass. A nil check does nothing. Under a master that
// does the upgrades no check is made.
func HealthCheck(check func(ctx context.Context, c *http.Client) error) Option {
	return func(o *options) error {
		if check != nil {
			o.health = append(o.health, healthCheck{name: "HealthCheck", http: check})
		}
		return nil
	}
}

// HealthCheckConn is [HealthCheck] for other protocols: check is given one connection to the
// new process, on the listener that was asked for by network and addr, as in
// [Upgrader.Listen]. If the new version has no such listener, the check has failed. conn is
// a [*net.TCPConn], or a [*net.UnixConn] if the listener is one of unix sockets; it is
// closed when the check is over.
func HealthCheckConn(network, addr string, check func(ctx context.Context, conn net.Conn) error) Option {
	return func(o *options) error {
		if check != nil {
			o.health = append(o.health, healthCheck{name: "HealthCheckConn", network: network, addr: addr, conn: check})
		}
		return nil
	}
}

// A healthCheck has http or conn.
type healthCheck struct {
	name          string // of the option
	http          func(context.Context, *http.Client) error
	network, addr string
	conn          func(context.Context, net.Conn) error
}

// healthPatience is how long a health check may take at least: a shorter probation is no
// reason to roll back a process that is slow at first.
const healthPatience = 5 * time.Second

// examine watches the child through probation, and returns what is wrong with it, as soon
// as that is known; nil at the end of probation if nothing is, and all checks have passed.
func (u *Upgrader) examine(c *child, probation time.Duration) error {
	checks := u.opt.health
	if len(checks) > 0 && !c.probes.Load() {
		u.log.Warn("grace: the new process is of a version that can't be given a connection; its health is not checked", "new", c.proc.Pid())
		checks = nil
	}
	results := make(chan error, 1+len(checks))
	for _, h := range checks {
		go func() { results <- u.check(c, h, max(probation, healthPatience)) }()
	}
	go func() { results <- c.outlast(probation) }()
	for range cap(results) {
		if err := <-results; err != nil {
			return err
		}
	}
	return nil
}

// outlast waits for the end of probation, and then for as long as the child may be one that
// accepts nothing.
func (c *child) outlast(probation time.Duration) error {
	var taken []*sockets.Socket
	for _, i := range c.listeners() {
		taken = append(taken, c.handed[i])
	}
	return sockets.WatchQueues(c.ctx, taken, probation)
}

// check makes one health check. One that does not heed its context is left behind.
func (u *Upgrader) check(c *child, h healthCheck, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(c.ctx, patience)
	defer cancel()
	err := u.callBounded(ctx, h.name, h.name, patience, func(ctx context.Context) error { return h.run(ctx, c) }, func() {})
	if ctx.Err() != nil && !errors.Is(err, errDeaf) { // it may say what it waited for
		return errors.Join(fmt.Errorf("%s has not returned within %v", h.name, patience), err)
	}
	return err
}

// run calls the program's function. The connections that it has been given end with ctx,
// and when it returns.
func (h healthCheck) run(ctx context.Context, c *child) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("%s: %w", h.name, err)
		}
	}()
	var d probes
	defer d.end()
	defer context.AfterFunc(ctx, d.end)()
	if h.conn != nil {
		index, err := c.listenerOf(h.network, h.addr)
		if err != nil {
			return err
		}
		conn, err := d.dial(ctx, c, index)
		if err != nil {
			return err
		}
		return h.conn(ctx, conn)
	}
	t := &http.Transport{ForceAttemptHTTP2: true, DialContext: func(dctx context.Context, _, addr string) (net.Conn, error) {
		index, err := c.listenerAt(addr)
		if err != nil {
			return nil, err
		}
		return d.dial(dctx, c, index)
	}}
	defer t.CloseIdleConnections()
	return h.http(ctx, &http.Client{Transport: t})
}

// probes are the connections of one health check.
type probes struct {
	mu    sync.Mutex // guards the following
	conns []net.Conn
	over  bool
}

func (d *probes) dial(ctx context.Context, c *child, index int) (net.Conn, error) {
	conn, err := sockets.Probe(ctx, c.ch, c.handed, index)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.over {
		conn.Close()
		return nil, fmt.Errorf("the health check is over: %w", net.ErrClosed)
	}
	d.conns = append(d.conns, conn)
	return conn, nil
}

func (d *probes) end() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.over = true
	for _, conn := range d.conns {
		conn.Close()
	}
	d.conns = nil
}

// listeners are the indexes of the listeners that the child has taken.
func (c *child) listeners() []int {
	return slices.DeleteFunc(slices.Clone(c.claims.Load().Sockets), func(i int) bool {
		return i < 0 || i >= len(c.handed) || c.handed[i].Listener == nil
	})
}

// listenerOf finds the listener that was asked for by this name, or has this address.
func (c *child) listenerOf(network, addr string) (int, error) {
	all := c.listeners()
	for _, i := range all {
		if s := c.handed[i]; s.Network == network && s.Addr == addr {
			return i, nil
		}
	}
	for _, i := range all {
		if a := c.handed[i].Listener.Addr(); a.Network() == network && a.String() == addr {
			return i, nil
		}
	}
	return 0, fmt.Errorf("the new process has no listener %s %s; it has %s", network, addr, c.names(all))
}

// listenerAt finds the listener that a URL with this host and port means.
func (c *child) listenerAt(addr string) (int, error) {
	all := c.listeners()
	port := addr[strings.LastIndexByte(addr, ':')+1:]
	found := -1
	for _, i := range all {
		a, ok := c.handed[i].Listener.Addr().(*net.TCPAddr)
		switch {
		case !ok:
		case a.String() == addr:
			return i, nil
		case found < 0 && fmt.Sprint(a.Port) == port:
			found = i
		}
	}
	switch {
	case found >= 0:
		return found, nil
	case len(all) == 1:
		return all[0], nil
	}
	return 0, fmt.Errorf("the new process has no listener with port %s; it has %s", port, c.names(all))
}

func (c *child) names(listeners []int) string {
	if len(listeners) == 0 {
		return "none"
	}
	var names []string
	for _, i := range listeners[:min(len(listeners), 10)] {
		a := c.handed[i].Listener.Addr()
		names = append(names, a.Network()+" "+a.String())
	}
	return strings.Join(names, ", ")
}
