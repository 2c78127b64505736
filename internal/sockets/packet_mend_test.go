//go:build unix

package sockets

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/testing/wait"
	"golang.org/x/sys/unix"
)

// Another process that has a packet socket shuts it down for all, or removes its
// path, and fails: another one takes its place, behind the same packet conn.
func TestPacketConnIsMadeWhole(t *testing.T) {
	dir := t.TempDir()
	type harm func(p net.PacketConn, sock *Socket) error
	down := func(how int) harm {
		return func(_ net.PacketConn, sock *Socket) (err error) {
			sock.Control(func(fd uintptr) { err = unix.Shutdown(int(fd), how) })
			if err == unix.ENOTCONN { // and yet it has done so
				err = nil
			}
			return err
		}
	}
	removed := func(_ net.PacketConn, sock *Socket) error { return os.Remove(sock.Path) }
	for _, at := range []struct {
		network, addr, name string
		harm                harm
	}{
		{"udp", "127.0.0.1:0", "shut down", down(unix.SHUT_RDWR)},
		{"udp4", ":0", "shut down for reading", down(unix.SHUT_RD)},
		{"udp", "127.0.0.1:0", "shut down for writing", down(unix.SHUT_WR)},
		{"unixgram", filepath.Join(dir, "s"), "shut down", down(unix.SHUT_RDWR)},
		{"unixgram", "@" + dir, "shut down for reading", down(unix.SHUT_RD)},
		{"unixgram", filepath.Join(dir, "r"), "removed", removed},
	} {
		for _, when := range []string{"not ready", "rolled back"} {
			t.Run(fmt.Sprintf("%s %s, %s", at.network, at.name, when), func(t *testing.T) {
				s := New(nil, 0)
				p, err := s.ListenPacket(net.ListenConfig{}, at.network, at.addr)
				if err != nil {
					t.Fatal(err)
				}
				defer p.Close()
				if err := s.OpenGates(); err != nil {
					t.Fatal(err)
				}
				ended := make(chan error, 1)
				go echoPackets(p, ended)
				wait.Until(t, "an answer before", func() bool { return echoed(t, p) == nil })
				sock := s.ToHandOver()[0]
				if when == "rolled back" {
					s.Yield([]*Socket{sock}, []int{0})
				}
				if err := at.harm(p, sock); err != nil {
					t.Fatal(err)
				}
				if when == "rolled back" {
					s.ReopenGates()
				} else {
					s.MendAll()
				}
				wait.Until(t, "an answer", func() bool { return echoed(t, p) == nil })
				wait.Until(t, "the end of the mending", func() bool { return len(s.tries()) == 0 })
				if sock.isShutDown() || sock.lost() {
					t.Error("the next new process would get a socket that is of no use")
				}
				select {
				case err := <-ended:
					t.Errorf("ReadFrom returned %v", err)
				default:
				}
				p.Close()
				if err := <-ended; err == nil {
					t.Error("ReadFrom returned nothing after Close")
				}
			})
		}
	}
}

// A packet conn that the program itself has shut down stays so.
func TestPacketConnThatIsToBeDeafStaysDeaf(t *testing.T) {
	s := New(nil, 0)
	p, err := s.ListenPacket(net.ListenConfig{}, "unixgram", "@"+t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	s.OpenGates()
	if err := p.(*UnixgramConn).CloseRead(); err != nil {
		t.Fatal(err)
	}
	before := p.(*UnixgramConn).inner()
	sock := s.ToHandOver()[0]
	s.Yield([]*Socket{sock}, []int{0})
	s.ReopenGates()
	wait.Until(t, "the end of the mending", func() bool { return len(s.tries()) == 0 })
	if p.(*UnixgramConn).inner() != before {
		t.Error("another socket has taken its place")
	}
}

func echoPackets(p net.PacketConn, ended chan<- error) {
	b := make([]byte, 64)
	for {
		n, from, err := p.ReadFrom(b)
		if err != nil {
			ended <- err
			return
		}
		p.WriteTo(b[:n], from) // an error of this is the client's to notice
	}
}

// echoed asks once, from a socket of its own.
func echoed(t *testing.T, p net.PacketConn) error {
	network, addr := p.LocalAddr().Network(), "127.0.0.1:0"
	to := p.LocalAddr()
	if network == "unixgram" {
		addr = fmt.Sprintf("@echo-%p-%d", t, time.Now().UnixNano())
	} else {
		to = &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: to.(*net.UDPAddr).Port}
	}
	c, err := net.ListenPacket(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Second))
	if _, err := c.WriteTo([]byte("hello"), to); err != nil {
		return err
	}
	b := make([]byte, 64)
	n, _, err := c.ReadFrom(b)
	if err == nil && string(b[:n]) != "hello" {
		t.Fatalf("the answer is %q", b[:n])
	}
	return err
}
