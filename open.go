package grace

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

// An opened is a listener as a listener stands before it.
type opened struct {
	fd.Listener
	// late says that it is bound, and does not listen yet: see openLate.
	late bool
	// tune gives a connection the keep-alives of the ListenConfig; nil where net
	// itself does, which knows nothing of them in a listener made of a descriptor.
	tune func(*net.TCPConn)
}

// listen gives the inherited listener, or opens one.
func (s *sockets) listen(lc net.ListenConfig, network, addr string) (*listener, error) {
	open := func(network, addr string) (opened, error) { return openListener(lc, network, addr) }
	return s.listenBy(lc, open, open, network, addr)
}

// listenBy gives the inherited listener, or what open does; again opens it once more,
// should this process need it anew.
func (s *sockets) listenBy(lc net.ListenConfig, open, again func(network, addr string) (opened, error), network, addr string) (*listener, error) {
	var inner opened
	in, ok := s.claim(manifest.Listener, network, addr)
	if ok {
		defer s.made(in)
		l, err := fd.NewListener(in.fd)
		if err != nil {
			return nil, fmt.Errorf("grace: inherited listener %s %s (descriptor %d): %w", network, addr, in.fd, err)
		}
		inner = opened{Listener: l, tune: tune(lc, l)}
	} else if network == systemdNetwork {
		return nil, s.noSuchName(addr)
	} else {
		var err error
		if inner, err = open(network, addr); err != nil {
			return nil, err
		}
		in = inheritedSocket{Entry: describe(manifest.Listener, network, addr, inner.Listener), index: -1}
	}
	askedFor(&in.Entry, network, addr)
	sock := &socket{Entry: in.Entry, index: in.index, gate: gate.New(inner.SetDeadline)}
	sock.gate.Unblock = sock.unblock
	raw, err := inner.SyscallConn()
	if err == nil {
		err = sock.setRaw(raw)
	}
	if err != nil {
		inner.Close()
		return nil, fmt.Errorf("grace: listen %s %s: %w", network, addr, err)
	}
	l := &listener{inner: inner, addr: inner.Addr(), gate: sock.gate, sock: sock, socks: s}
	l.open = func() (opened, error) {
		return again(reopenName(&sock.Entry))
	}
	sock.listener, sock.whole = l, l.makeWhole
	l.expired = &net.OpError{Op: "read", Net: l.addr.Network(), Source: l.addr, Err: os.ErrDeadlineExceeded}
	l.custom = lc.KeepAlive != 0 || lc.KeepAliveConfig != (net.KeepAliveConfig{})
	if err := s.add(sock); err != nil {
		if sock.index < 0 {
			sock.unlink()
		}
		l.letGo()
		return nil, err
	}
	return l, nil
}

// reopenName is what opens this socket once more, whatever the working directory and
// the name server say by now.
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

func openListener(lc net.ListenConfig, network, addr string) (opened, error) {
	switch network {
	case "tcp", "tcp4", "tcp6", "unix", "unixpacket":
	default:
		return opened{}, fmt.Errorf("grace: listen %s %s: %w; have tcp, tcp4, tcp6, unix, unixpacket; packets are ListenPacket's", network, addr, net.UnknownNetworkError(network))
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
			return opened{Listener: late, late: true, tune: tune(lc, late)}, nil
		}
	default:
		l, err = open()
	}
	if err != nil {
		return opened{}, fmt.Errorf("grace: %w", err)
	}
	a, ok := l.(fd.Listener)
	if !ok {
		l.Close()
		return opened{}, fmt.Errorf("grace: listen %s %s: a %T can't be handed over", network, addr, l)
	}
	if ul, ok := l.(interface{ SetUnlinkOnClose(bool) }); ok { // a *net.UnixListener
		ul.SetUnlinkOnClose(false) // the path outlives this process
	}
	return opened{Listener: a}, nil
}

// tune gives what makes the keep-alives of a connection those that net gives one
// of a listener that it has opened with lc itself (newTCPConn in net's
// tcpsock.go). What is not lc's is the listening socket's, as Control has set it:
// the kernel hands that down. nil: net's own are right.
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

// listenPacket gives the inherited packet conn, or opens one.
func (s *sockets) listenPacket(lc net.ListenConfig, network, addr string) (net.PacketConn, error) {
	var inner net.PacketConn
	var err error
	in, ok := s.claim(manifest.Packet, network, addr)
	if ok {
		defer s.made(in)
		if inner, err = fd.NewPacketConn(in.fd); err != nil {
			return nil, fmt.Errorf("grace: inherited packet conn %s %s (descriptor %d): %w", network, addr, in.fd, err)
		}
	} else if network == systemdNetwork {
		return nil, s.noSuchName(addr)
	} else {
		if inner, err = openPacket(lc, network, addr); err != nil {
			return nil, err
		}
		in = inheritedSocket{Entry: describe(manifest.Packet, network, addr, inner), index: -1}
	}
	askedFor(&in.Entry, network, addr)
	g := gate.New(inner.SetReadDeadline)
	sock := &socket{Entry: in.Entry, index: in.index, gate: g}
	g.Unblock = sock.unblock
	open := func() (net.PacketConn, error) {
		network, addr := reopenName(&sock.Entry)
		return openPacket(lc, network, addr)
	}
	p, raw, err := newPacketConn(inner, g, sock, s, open)
	if err == nil {
		sock.raw = raw
		err = s.add(sock)
	}
	if err != nil {
		if sock.index < 0 {
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

// hasPath says whether a socket of this address has a file.
func hasPath(network, addr string) bool {
	return strings.HasPrefix(network, "unix") && addr != "" && addr[0] != '@' && addr[0] != 0
}
