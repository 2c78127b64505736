//go:build unix

package sockets

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/testing/wait"
	"golang.org/x/sys/unix"
)

// listenOpen gives a packet conn of a process that is ready.
func listenOpen(t *testing.T, network, addr string) (*Set, *UDPConn) {
	t.Helper()
	s := New(nil, 0)
	p, err := s.ListenPacket(net.ListenConfig{}, network, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	if err := s.OpenGates(); err != nil {
		t.Fatal(err)
	}
	return s, p.(*UDPConn)
}

// asks reports what is wrong with the answer to a client that sees only what comes from
// the address of this machine that it has asked.
func asks(p *UDPConn, host string) error {
	c, err := net.Dial("udp", net.JoinHostPort(host, fmt.Sprint(p.LocalAddr().(*net.UDPAddr).Port)))
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(wait.Limit))
	if _, err := c.Write([]byte("hello")); err != nil {
		return err
	}
	b := make([]byte, 64)
	n, err := c.Read(b)
	if err == nil && string(b[:n]) != "hello" {
		err = fmt.Errorf("the answer is %q", b[:n])
	}
	if err != nil {
		err = fmt.Errorf("%s asked: %w", host, err)
	}
	return err
}

// TestUDPAnswersFromTheAddressThatWasAsked: a wildcard socket, whichever methods are
// used, also after a roll back, and once another socket has taken its place.
func TestUDPAnswersFromTheAddressThatWasAsked(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("elsewhere the kernel chooses")
	}
	echo := map[string]func(*UDPConn, []byte) error{
		"ReadFrom": func(p *UDPConn, b []byte) error {
			n, addr, err := p.ReadFrom(b)
			if err == nil {
				_, err = p.WriteTo(b[:n], addr)
			}
			return err
		},
		"ReadFromUDP": func(p *UDPConn, b []byte) error {
			n, addr, err := p.ReadFromUDP(b)
			if err == nil {
				_, err = p.WriteToUDP(b[:n], addr)
			}
			return err
		},
		"ReadFromUDPAddrPort": func(p *UDPConn, b []byte) error {
			n, addr, err := p.ReadFromUDPAddrPort(b)
			if err == nil {
				_, err = p.WriteToUDPAddrPort(b[:n], addr)
			}
			return err
		},
		"WriteTo of an address of 4 bytes": func(p *UDPConn, b []byte) error {
			n, addr, err := p.ReadFromUDP(b)
			if err == nil {
				if ip := addr.IP.To4(); ip != nil {
					addr.IP = ip
				}
				_, err = p.WriteTo(b[:n], addr)
			}
			return err
		},
	}
	for _, network := range []string{"udp4", "udp"} {
		for name, echo := range echo {
			t.Run(network+" "+name, func(t *testing.T) {
				s, p := listenOpen(t, network, ":0")
				ended := make(chan error, 1)
				go func() {
					b := make([]byte, 64)
					for {
						if err := echo(p, b); err != nil {
							ended <- err
							return
						}
					}
				}()
				hosts := []string{"127.0.0.2", "127.0.0.1", "127.0.0.3"}
				ask := func(when string) {
					t.Helper()
					for _, host := range hosts {
						if err := asks(p, host); err != nil {
							t.Fatalf("%s: %v", when, err)
						}
					}
				}
				ask("at first")
				sock := s.ToHandOver()[0]
				s.Yield([]*Socket{sock}, []int{0})
				s.ReopenGates()
				ask("rolled back")
				s.Yield([]*Socket{sock}, []int{0})
				sock.Control(func(fd uintptr) { unix.Shutdown(int(fd), unix.SHUT_RDWR) }) // ENOTCONN, and yet it does so
				before := p.inner()
				s.ReopenGates()
				wait.Until(t, "another socket", func() bool { return p.inner() != before })
				wait.Until(t, "the end of the mending", func() bool { return len(s.tries()) == 0 })
				ask("made whole")
				p.Close()
				if err := wait.For(t, ended, "the end"); !errors.Is(err, net.ErrClosed) {
					t.Errorf("it ended with %v", err)
				}
			})
		}
	}
}

// TestUDPErrors: those of net.UDPConn, for what it is not given as it wants it, or after
// Close.
func TestUDPErrors(t *testing.T) {
	_, ours := listenOpen(t, "udp4", "0.0.0.0:0")
	plain, err := net.ListenUDP("udp4", nil)
	if err != nil {
		t.Fatal(err)
	}
	if runtime.GOOS == "linux" { // a peer whose source is known is no exception
		go func() {
			b := make([]byte, 64)
			n, addr, _ := ours.ReadFrom(b)
			ours.WriteTo(b[:n], addr)
		}()
		if err := asks(ours, "127.0.0.2"); err != nil {
			t.Fatal(err)
		}
	}
	type conn interface {
		net.PacketConn
		WriteToUDP([]byte, *net.UDPAddr) (int, error)
		WriteToUDPAddrPort([]byte, netip.AddrPort) (int, error)
	}
	read := func(c conn) error { _, addr, err := c.ReadFrom(make([]byte, 1)); return errors.Join(err, isNil(addr)) }
	cases := map[string]func(conn) error{
		"no address":     func(c conn) error { _, err := c.WriteTo(nil, nil); return err },
		"nil *UDPAddr":   func(c conn) error { _, err := c.WriteTo(nil, (*net.UDPAddr)(nil)); return err },
		"WriteToUDP nil": func(c conn) error { _, err := c.WriteToUDP(nil, nil); return err },
		"no AddrPort":    func(c conn) error { _, err := c.WriteToUDPAddrPort(nil, netip.AddrPort{}); return err },
		"IPv6":           func(c conn) error { _, err := c.WriteTo(nil, &net.UDPAddr{IP: net.IPv6loopback, Port: 1}); return err },
		"another kind":   func(c conn) error { _, err := c.WriteTo(nil, &net.UnixAddr{Name: "x"}); return err },
		"too long": func(c conn) error {
			_, err := c.WriteTo(make([]byte, 1<<17), &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 9})
			return err
		},
		"port 0":               func(c conn) error { _, err := c.WriteTo(nil, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}); return err },
		"deadline in the past": func(c conn) error { c.SetReadDeadline(time.Unix(1, 0)); return read(c) },
		"closed":               func(c conn) error { c.Close(); return read(c) },
		"write after that": func(c conn) error {
			_, err := c.WriteTo(nil, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 9})
			return err
		},
	}
	for _, name := range []string{"no address", "nil *UDPAddr", "WriteToUDP nil", "no AddrPort", "IPv6", "another kind", "too long", "port 0", "deadline in the past", "closed", "write after that"} {
		got, want := cause(cases[name](ours)), cause(cases[name](plain))
		if got == nil || want == nil || got.Error() != want.Error() {
			t.Errorf("%s: %v, want %v as of net.UDPConn", name, got, want)
		}
	}
}

func isNil(addr net.Addr) error {
	if addr == nil {
		return nil
	}
	return fmt.Errorf("an address besides an error: %#v", addr)
}

// cause is what a net.OpError has, or err.
func cause(err error) error {
	if op := (*net.OpError)(nil); errors.As(err, &op) {
		return op.Err
	}
	return err
}
