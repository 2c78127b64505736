//go:build unix

package grace

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/julofinance/grace/v3/internal/sockets"
	"github.com/julofinance/grace/v3/internal/testing/fdtest"
	"golang.org/x/sys/unix"
)

// embedded is a listener as frameworks make them.
type embedded struct{ *net.TCPListener }

func mustListen(t *testing.T, network, addr string) net.Listener {
	t.Helper()
	ln, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

// TestAddListener: what a framework has opened is handed over, and found by the calls that
// a later generation may use.
func TestAddListener(t *testing.T) {
	dir := t.TempDir()
	for name, open := range map[string]func(*testing.T) net.Listener{
		"tcp": func(t *testing.T) net.Listener { return mustListen(t, "tcp", "127.0.0.1:0") },
		"embedded": func(t *testing.T) net.Listener {
			return embedded{mustListen(t, "tcp", "127.0.0.1:0").(*net.TCPListener)}
		},
		"unix": func(t *testing.T) net.Listener { return mustListen(t, "unix", filepath.Join(dir, "s")) },
	} {
		t.Run(name, func(t *testing.T) {
			addrs := make(chan net.Addr, 9)
			var addr net.Addr
			h := newHouse(t, func(g *generation) error {
				var l net.Listener
				var err error
				switch g.n {
				case 1:
					given := open(t)
					addr = given.Addr()
					l, err = g.AddListener(given)
				case 2:
					l, err = g.Listen(addr.Network(), addr.String())
				default:
					l, err = g.ListenFunc(addr.Network(), addr.String(), func() (net.Listener, error) {
						return nil, errors.New("open was called, and the socket was handed over")
					})
				}
				if err != nil {
					return err
				}
				g.serve(l)
				addrs <- l.Addr()
				return g.Ready()
			})
			h.opts = func(int) []Option { return []Option{Probation(0)} }
			g := h.first()
			for want := range 3 {
				if g.err != nil {
					t.Fatal(g.err)
				}
				a := receive(t, addrs, "the listener")
				if a.String() != addr.String() {
					t.Errorf("it listens on %v, want %v", a, addr)
				}
				askUntil(t, a, string(rune('1'+want)))
				if want == 2 {
					break
				}
				if err := receive(t, g.upgrade(), "Upgrade"); err != nil {
					t.Fatal(err)
				}
				receive(t, g.Done(), "Done")
				g = h.next()
			}
			g.askStop()
			receive(t, g.Done(), "Done of the last")
			if at, ok := addr.(*net.TCPAddr); ok && fdtest.Listens(t, at) {
				t.Error("it listens after the last stop")
			}
			if name == "unix" {
				if _, err := os.Lstat(addr.String()); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("the socket's file is there after the last stop: %v", err)
				}
			}
		})
	}
}

// TestAddListenerAgain: the framework opens its socket again in the new process, which
// SO_REUSEPORT allows; the inherited one is given.
func TestAddListenerAgain(t *testing.T) {
	var lc net.ListenConfig
	lc.Control = func(_, _ string, c syscall.RawConn) (err error) {
		if e := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) }); e != nil {
			return e
		}
		return err
	}
	addr := "127.0.0.1:0"
	given := make(chan net.Listener, 9)
	h := newHouse(t, func(g *generation) error {
		ln, err := lc.Listen(t.Context(), "tcp", addr)
		if err != nil {
			return err
		}
		addr = ln.Addr().String()
		l, err := g.AddListener(ln)
		if err != nil {
			return err
		}
		if inherited := l.(*sockets.Listener).Sock.Index >= 0; inherited != (g.n > 1) {
			t.Errorf("generation %d: inherited %v", g.n, inherited)
		}
		given <- ln
		g.serve(l)
		return g.Ready()
	})
	h.opts = func(int) []Option { return []Option{Probation(0)} }
	g := h.first()
	<-given
	if err := receive(t, g.upgrade(), "Upgrade"); err != nil {
		t.Fatal(err)
	}
	if _, err := receive(t, given, "the second listener").Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the listener that is not used: %v, want it to be closed", err)
	}
	h.next().askStop()
}

// TestAddListenerOfOthers: what can't be handed over is closed, and the error says so.
func TestAddListenerOfOthers(t *testing.T) {
	u, ln := newSolo(t)
	if l, err := u.AddListener(ln); l != ln || err != nil {
		t.Errorf("one of Listen: %v, %v, want itself", l, err)
	}
	if l, err := u.AddListener(nil); l != nil || err == nil {
		t.Errorf("nil: %v, %v, want an error", l, err)
	}
	inner := mustListen(t, "tcp", "127.0.0.1:0")
	l, err := u.AddListener(ownWords{inner})
	if l != nil || !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), "ownWords") {
		t.Errorf("one that wraps a listener: %v, %v, want an error that names its type", l, err)
	}
	if _, err := inner.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("it is not closed: %v", err)
	}
	broken := errors.New("broken")
	if l, err := u.ListenFunc("tcp", ":1", func() (net.Listener, error) { return nil, broken }); l != nil || !errors.Is(err, broken) {
		t.Errorf("ListenFunc: %v, %v, want what open returned", l, err)
	}
	u.askStop()
	receive(t, u.Done(), "Done")
	inner = mustListen(t, "tcp", "127.0.0.1:0")
	if l, err := u.AddListener(inner); l != nil || !errors.Is(err, ErrStopped) {
		t.Errorf("after Done: %v, %v, want ErrStopped", l, err)
	}
	if _, err := inner.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("it is not closed after Done: %v", err)
	}
}

// TestListenWith: each socket has its own configuration.
func TestListenWith(t *testing.T) {
	u, _ := newSolo(t)
	called := 0
	lc := net.ListenConfig{Control: func(_, _ string, _ syscall.RawConn) error { called++; return nil }}
	if _, err := u.ListenWith(lc, "tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	if _, err := u.ListenPacketWith(lc, "udp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	if _, err := u.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	if called != 2 {
		t.Errorf("Control was called %d times, want for the two sockets that it was given for", called)
	}
	u.askStop()
	receive(t, u.Done(), "Done")
}

// TestAcceptedConnectionsImplement: what the documentation of Listen promises.
func TestAcceptedConnectionsImplement(t *testing.T) {
	type both interface {
		net.Conn
		syscall.Conn
		io.ReaderFrom
		io.WriterTo
		NetConn() net.Conn
		CloseRead() error
		CloseWrite() error
		File() (*os.File, error)
	}
	var _ interface {
		both
		SetNoDelay(bool) error
		SetLinger(int) error
		SetKeepAliveConfig(net.KeepAliveConfig) error
		MultipathTCP() (bool, error)
	} = &sockets.TCPConn{}
	var _ interface {
		net.Conn
		syscall.Conn
		NetConn() net.Conn
		CloseRead() error
		CloseWrite() error
		File() (*os.File, error)
		ReadFrom([]byte) (int, net.Addr, error)
		ReadMsgUnix(b, oob []byte) (n, oobn, flags int, addr *net.UnixAddr, err error)
		WriteMsgUnix(b, oob []byte, addr *net.UnixAddr) (n, oobn int, err error)
	} = &sockets.UnixConn{}
}

// TestPacketConnsImplement: what the documentation of ListenPacket promises, every method of
// a connection of package net. Each is our own: one that a later Go adds, and that is only
// embedded, would read though another process is to.
func TestPacketConnsImplement(t *testing.T) {
	type both interface {
		net.PacketConn
		net.Conn
		syscall.Conn
	}
	var _, _ both = &sockets.UDPConn{}, &sockets.UnixgramConn{}
	for ours, theirs := range map[reflect.Type]reflect.Type{
		reflect.TypeFor[*sockets.UDPConn]():      reflect.TypeFor[*net.UDPConn](),
		reflect.TypeFor[*sockets.UnixgramConn](): reflect.TypeFor[*net.UnixConn](),
	} {
		for i := range theirs.NumMethod() {
			want := theirs.Method(i)
			got, ok := ours.MethodByName(want.Name)
			if !ok || parameters(got.Type) != parameters(want.Type) {
				t.Errorf("%v has no %s%s", ours, want.Name, parameters(want.Type))
				continue
			}
			if file, _ := runtime.FuncForPC(got.Func.Pointer()).FileLine(got.Func.Pointer()); file == "<autogenerated>" {
				t.Errorf("%s of %v is that of %v", want.Name, ours, theirs)
			}
		}
	}
}

// parameters describes a method's type without its receiver.
func parameters(method reflect.Type) string {
	var in, out []string
	for i := 1; i < method.NumIn(); i++ {
		in = append(in, method.In(i).String())
	}
	for i := range method.NumOut() {
		out = append(out, method.Out(i).String())
	}
	return fmt.Sprintf("(%s) (%s)", strings.Join(in, ", "), strings.Join(out, ", "))
}

// TestNotSupported: the error matches that of package errors.
func TestNotSupported(t *testing.T) {
	if !errors.Is(ErrNotSupported, errors.ErrUnsupported) || errors.Is(ErrStopped, errors.ErrUnsupported) {
		t.Error("ErrNotSupported, and no other, is to match errors.ErrUnsupported")
	}
}
