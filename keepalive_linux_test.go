package grace

import (
	"errors"
	"fmt"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/sockets"
	"golang.org/x/sys/unix"
)

// connOptions reads what belongs to the ListenConfig of a connection's listener.
func connOptions(c *net.TCPConn) string {
	raw, err := c.SyscallConn()
	if err != nil {
		return err.Error()
	}
	s := ""
	raw.Control(func(fd uintptr) {
		for _, o := range []struct {
			name       string
			level, opt int
		}{
			{"keepalive", unix.SOL_SOCKET, unix.SO_KEEPALIVE}, {"idle", unix.IPPROTO_TCP, unix.TCP_KEEPIDLE},
			{"interval", unix.IPPROTO_TCP, unix.TCP_KEEPINTVL}, {"count", unix.IPPROTO_TCP, unix.TCP_KEEPCNT},
			{"user timeout", unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT}, {"nodelay", unix.IPPROTO_TCP, unix.TCP_NODELAY},
		} {
			v, err := unix.GetsockoptInt(int(fd), o.level, o.opt)
			s += fmt.Sprintf("%s %d %v; ", o.name, v, err)
		}
	})
	return s
}

// What a listener was opened with holds for its connections in every generation,
// after it was opened again, and where it listens late.
func TestListenConfigInEveryGeneration(t *testing.T) {
	set := func(options ...[3]int) func(string, string, syscall.RawConn) error {
		return func(_, _ string, c syscall.RawConn) (err error) {
			cerr := c.Control(func(fd uintptr) {
				for _, o := range options {
					err = errors.Join(err, unix.SetsockoptInt(int(fd), o[0], o[1], o[2]))
				}
			})
			return errors.Join(cerr, err)
		}
	}
	timeout := [3]int{unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 4321}
	reuse := [3]int{unix.SOL_SOCKET, unix.SO_REUSEPORT, 1}
	idle := [3]int{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 77}
	for name, lc := range map[string]net.ListenConfig{
		"none":       {},
		"period":     {KeepAlive: 7 * time.Second},
		"off":        {KeepAlive: -1},
		"own":        {KeepAlive: -1, Control: set([3]int{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1}, idle, timeout)},
		"all":        {KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 21 * time.Second, Interval: 3 * time.Second, Count: 5}},
		"in part":    {KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: -1, Interval: 3 * time.Second, Count: -1}, Control: set(idle)},
		"disabled":   {KeepAlive: 5 * time.Second, KeepAliveConfig: net.KeepAliveConfig{Idle: time.Hour}},
		"timeout":    {Control: set(timeout)},
		"reuse":      {Control: set(reuse)},
		"reuse, off": {KeepAlive: -1, Control: set(reuse, timeout, idle)},
	} {
		t.Run(name, func(t *testing.T) {
			// What net does, with a listener that is its own.
			ln, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			want := optionsOf(t, ln)
			ln.Close()
			listeners := make(chan net.Listener, 9)
			h := newHouse(t, func(g *generation) error {
				l, err := g.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					return err
				}
				listeners <- l
				return g.Ready()
			})
			h.opts = func(int) []Option { return []Option{Probation(0), ListenConfig(lc)} }
			g := h.first()
			if g.err != nil {
				t.Fatal(g.err)
			}
			for n := 1; n <= 3; n++ {
				if n > 1 {
					old, done := g, g.upgrade()
					g = h.next()
					if err := receive(t, done, "Upgrade"); err != nil {
						t.Fatal(err)
					}
					receive(t, old.ended, "the end of the old one") // and of its copies
				}
				l := receive(t, listeners, "a listener").(*sockets.Listener)
				if got := optionsOf(t, l); got != want {
					t.Errorf("generation %d:\ngot  %s\nwant %s", n, got, want)
				}
				if n == 3 {
					g.socks.OpenAnew(t.Context(), l)
					if got := optionsOf(t, l); got != want {
						t.Errorf("opened again:\ngot  %s\nwant %s", got, want)
					}
				}
			}
			g.askStop()
			receive(t, g.Done(), "Done")
		})
	}
}

func optionsOf(t *testing.T, l net.Listener) string {
	t.Helper()
	c, err := net.DialTimeout("tcp", l.Addr().String(), limit)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	l.(interface{ SetDeadline(time.Time) error }).SetDeadline(time.Now().Add(limit))
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()
	if c, ok := accepted.(*sockets.TCPConn); ok {
		return connOptions(c.TCPConn)
	}
	return connOptions(accepted.(*net.TCPConn))
}
