package sockets

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/julofinance/grace/v3/internal/fd"
	"github.com/julofinance/grace/v3/internal/gate"
	"github.com/julofinance/grace/v3/internal/manifest"
)

// How a socket comes to be: inherited, opened, or opened again.

// An Opened is a net listener as a Listener stands before it.
type Opened struct {
	fd.Listener
	// late is true if it is bound, and does not listen yet: see openLate.
	late bool
	// tune gives a connection the keep-alives of the ListenConfig; nil where net
	// itself does that. For a listener made of a descriptor net knows no
	// ListenConfig.
	tune func(*net.TCPConn)
}

// Listen gives the inherited listener, or opens one.
func (s *Set) Listen(lc net.ListenConfig, network, addr string) (*Listener, error) {
	open := func(network, addr string) (Opened, error) { return OpenListener(lc, network, addr) }
	return s.ListenBy(lc, open, open, network, addr)
}

// ListenBy gives the inherited listener, or the one that open opens; again opens
// it once more, should this process need it anew.
func (s *Set) ListenBy(lc net.ListenConfig, open, again func(network, addr string) (Opened, error), network, addr string) (*Listener, error) {
	var inner Opened
	in, ok := s.Claim(manifest.Listener, network, addr)
	if ok {
		defer s.Made(in)
		l, err := fd.NewListener(in.FD)
		if err != nil {
			return nil, fmt.Errorf("grace: inherited listener %s %s (descriptor %d): %w", network, addr, in.FD, err)
		}
		inner = Opened{Listener: l, tune: tune(lc, l)}
	} else if network == systemdNetwork {
		return nil, s.noSuchName(addr)
	} else {
		var err error
		if inner, err = open(network, addr); err != nil {
			return nil, err
		}
		in = Inherited{Entry: describe(manifest.Listener, network, addr, inner.Listener), Index: -1}
	}
	askedFor(&in.Entry, network, addr)
	sock := &Socket{Entry: in.Entry, Index: in.Index, gate: gate.New(inner.SetDeadline)}
	sock.gate.Unblock = sock.unblock
	raw, err := inner.SyscallConn()
	if err == nil {
		err = sock.setRaw(raw)
	}
	if err != nil {
		inner.Close()
		return nil, fmt.Errorf("grace: listen %s %s: %w", network, addr, err)
	}
	l := &Listener{inner: inner, addr: inner.Addr(), Gate: sock.gate, Sock: sock, socks: s}
	l.Open = func() (Opened, error) {
		return again(reopenName(&sock.Entry))
	}
	sock.Listener, sock.whole = l, l.makeWhole
	l.expired = &net.OpError{Op: "read", Net: l.addr.Network(), Source: l.addr, Err: os.ErrDeadlineExceeded}
	l.custom = lc.KeepAlive != 0 || lc.KeepAliveConfig != (net.KeepAliveConfig{})
	if err := s.Add(sock); err != nil {
		if sock.Index < 0 {
			sock.unlink()
		}
		l.letGo()
		return nil, err
	}
	return l, nil
}

// reopenName gives the names that open this socket once more, even if the working
// directory or the answers of the name server have changed.
func reopenName(e *manifest.Entry) (network, addr string) {
	if e.Path != "" {
		return e.Network, e.Path
	}
	bound, err := netip.ParseAddrPort(e.Bound)
	switch {
	case err != nil || e.Network != "tcp" && e.Network != "udp":
		return e.Network, e.Bound
	case bound.Addr().Is4():
		return e.Network + "4", e.Bound
	case e.V6Only:
		return e.Network + "6", e.Bound
	}
	return e.Network, e.Bound
}

func OpenListener(lc net.ListenConfig, network, addr string) (Opened, error) {
	switch network {
	case "tcp", "tcp4", "tcp6", "unix", "unixpacket":
	default:
		return Opened{}, fmt.Errorf("grace: listen %s %s: %w; have tcp, tcp4, tcp6, unix, unixpacket; packets are ListenPacket's", network, addr, net.UnknownNetworkError(network))
	}
	open := func() (net.Listener, error) { return lc.Listen(context.Background(), network, addr) }
	var l net.Listener
	var err error
	switch {
	case hasPath(network, addr):
		l, err = openPath(addr, network, open)
	case lc.Control != nil && strings.HasPrefix(network, "tcp"):
		var late fd.Listener
		if late, l, err = openLate(lc, network, addr); late != nil {
			return Opened{Listener: late, late: true, tune: tune(lc, late)}, nil
		}
	default:
		l, err = open()
	}
	if err != nil {
		return Opened{}, fmt.Errorf("grace: %w", err)
	}
	a, ok := l.(fd.Listener)
	if !ok {
		l.Close()
		return Opened{}, fmt.Errorf("grace: listen %s %s: a %T can't be handed over", network, addr, l)
	}
	if ul, ok := l.(interface{ SetUnlinkOnClose(bool) }); ok { // a *net.UnixListener
		ul.SetUnlinkOnClose(false) // the path outlives this process
	}
	return Opened{Listener: a}, nil
}

// tune returns a function that sets the keep-alives of a connection as net does
// for a listener that it has opened with lc itself (newTCPConn in net's
// tcpsock.go). What lc does not set is as Control has set it on the listening
// socket: the kernel hands that down. nil: net's own are right.
func tune(lc net.ListenConfig, l fd.Listener) func(*net.TCPConn) {
	c := lc.KeepAliveConfig
	if !c.Enable && lc.KeepAlive >= 0 {
		c = net.KeepAliveConfig{Enable: true, Idle: lc.KeepAlive}
	}
	if _, ok := l.(*net.TCPListener); !ok || c == (net.KeepAliveConfig{Enable: true}) {
		return nil
	}
	of := fd.KeepAlive(l)
	if !c.Enable {
		c = of
	}
	for _, v := range []struct{ v, of *time.Duration }{{&c.Idle, &of.Idle}, {&c.Interval, &of.Interval}} {
		if *v.v < 0 { // left as it is
			*v.v = *v.of
		}
	}
	if c.Count < 0 {
		c.Count = of.Count
	}
	return func(conn *net.TCPConn) { conn.SetKeepAliveConfig(c) }
}

// ListenPacket gives the inherited packet conn, or opens one.
func (s *Set) ListenPacket(lc net.ListenConfig, network, addr string) (net.PacketConn, error) {
	var inner net.PacketConn
	var err error
	in, ok := s.Claim(manifest.Packet, network, addr)
	if ok {
		defer s.Made(in)
		if inner, err = fd.NewPacketConn(in.FD); err != nil {
			return nil, fmt.Errorf("grace: inherited packet conn %s %s (descriptor %d): %w", network, addr, in.FD, err)
		}
	} else if network == systemdNetwork {
		return nil, s.noSuchName(addr)
	} else {
		if inner, err = openPacket(lc, network, addr); err != nil {
			return nil, err
		}
		in = Inherited{Entry: describe(manifest.Packet, network, addr, inner), Index: -1}
	}
	askedFor(&in.Entry, network, addr)
	g := gate.New(inner.SetReadDeadline)
	sock := &Socket{Entry: in.Entry, Index: in.Index, gate: g}
	g.Unblock = sock.unblock
	open := func() (net.PacketConn, error) {
		network, addr := reopenName(&sock.Entry)
		return openPacket(lc, network, addr)
	}
	p, raw, err := newPacketConn(inner, g, sock, s, open)
	if err == nil {
		sock.Raw = raw
		err = s.Add(sock)
	}
	if err != nil {
		if sock.Index < 0 {
			sock.unlink()
		}
		inner.Close()
		return nil, err
	}
	return p, nil
}

func openPacket(lc net.ListenConfig, network, addr string) (net.PacketConn, error) {
	switch network {
	case "udp", "udp4", "udp6", "unixgram":
	default:
		return nil, fmt.Errorf("grace: listen packet %s %s: %w; have udp, udp4, udp6, unixgram; streams are Listen's", network, addr, net.UnknownNetworkError(network))
	}
	open := func() (net.PacketConn, error) { return lc.ListenPacket(context.Background(), network, addr) }
	var p net.PacketConn
	var err error
	if hasPath(network, addr) {
		p, err = openPath(addr, network, open)
	} else {
		p, err = open()
	}
	if err != nil {
		return nil, fmt.Errorf("grace: %w", err)
	}
	return p, nil
}

// hasPath reports whether a socket of this address has a file.
func hasPath(network, addr string) bool {
	return strings.HasPrefix(network, "unix") && addr != "" && addr[0] != '@' && addr[0] != 0
}
