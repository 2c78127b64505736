package sockets

import (
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/julofinance/grace/v3/internal/gate"
	"github.com/julofinance/grace/v3/internal/pktinfo"
)

// A UDPConn is what Upgrader.ListenPacket gives for udp, udp4 and udp6: a
// [net.UDPConn] whose reads wait until this process is ready, and again once it
// has handed over; after Done they return net.ErrClosed. Writes always work.
// Reads through SyscallConn, as in golang.org/x/net's ReadBatch and quic-go, wait
// too; reads in its Control, or of File's copy, do not.
//
// One that is bound to a wildcard address, as to ":53", answers from the address
// that was asked, on Linux: the address to which a peer's last packet came, as
// read by ReadFrom, ReadFromUDP or ReadFromUDPAddrPort, is remembered for at
// least 16,384 peers, and WriteTo, WriteToUDP and WriteToUDPAddrPort send to that
// peer from there. A plain net.UDPConn leaves the choice to the kernel there.
// ReadMsgUDP and WriteMsgUDP are left alone: with the control messages of
// golang.org/x/net a program does that itself.
//
// One with SO_REUSEPORT that was not handed over, beside others of the same
// address, is given packets by the kernel from ListenPacket on. They wait until
// this process is ready, and are lost if it never is: to bind such a socket later
// would leave it without an address, and the kernel has no other way to keep
// packets from it.
//
// If a new process has shut the socket down for all processes that have it, and
// failed, another one is opened in its place, with the options that ListenConfig
// gives it. The methods work on the present socket, and so does a SyscallConn
// that is asked for anew; the field is the first socket.
type UDPConn struct {
	*net.UDPConn
	packet[net.UDPConn, *net.UDPConn]
	sources pktinfo.Sources
}

// ReadFrom is [net.UDPConn.ReadFrom].
func (c *UDPConn) ReadFrom(b []byte) (n int, addr net.Addr, err error) {
	n, from, err := c.ReadFromUDPAddrPort(b)
	if err != nil {
		return n, nil, err
	}
	return n, net.UDPAddrFromAddrPort(from), nil
}

// Read is [net.UDPConn.Read].
func (c *UDPConn) Read(b []byte) (n int, err error) {
	err = c.read(func() (int, error) { n, err = c.inner().Read(b); return n, err })
	return n, err
}

// ReadFromUDP is [net.UDPConn.ReadFromUDP].
func (c *UDPConn) ReadFromUDP(b []byte) (n int, addr *net.UDPAddr, err error) {
	n, from, err := c.ReadFromUDPAddrPort(b)
	if err != nil {
		return n, nil, err
	}
	return n, net.UDPAddrFromAddrPort(from), nil
}

// ReadFromUDPAddrPort is [net.UDPConn.ReadFromUDPAddrPort].
func (c *UDPConn) ReadFromUDPAddrPort(b []byte) (n int, addr netip.AddrPort, err error) {
	err = c.read(func() (int, error) { n, addr, err = c.sources.Read(c.inner(), b); return n, err })
	return n, addr, err
}

// ReadMsgUDP is [net.UDPConn.ReadMsgUDP].
func (c *UDPConn) ReadMsgUDP(b, oob []byte) (n, oobn, flags int, addr *net.UDPAddr, err error) {
	err = c.read(func() (int, error) { n, oobn, flags, addr, err = c.inner().ReadMsgUDP(b, oob); return n, err })
	return n, oobn, flags, addr, err
}

// ReadMsgUDPAddrPort is [net.UDPConn.ReadMsgUDPAddrPort].
func (c *UDPConn) ReadMsgUDPAddrPort(b, oob []byte) (n, oobn, flags int, addr netip.AddrPort, err error) {
	err = c.read(func() (int, error) {
		n, oobn, flags, addr, err = c.inner().ReadMsgUDPAddrPort(b, oob)
		return n, err
	})
	return n, oobn, flags, addr, err
}

// SetReadDeadline is [net.UDPConn.SetReadDeadline].
func (c *UDPConn) SetReadDeadline(t time.Time) error { return c.Gate.SetDeadline(t) }

// SetDeadline is [net.UDPConn.SetDeadline].
func (c *UDPConn) SetDeadline(t time.Time) error {
	c.Gate.SetDeadline(t)
	return c.SetWriteDeadline(t)
}

// Close closes the socket in this process; it is not handed over any more.
func (c *UDPConn) Close() error {
	c.closing()
	return c.inner().Close()
}

// A UnixgramConn is what Upgrader.ListenPacket gives for unixgram; its reads
// behave like those of [UDPConn].
type UnixgramConn struct {
	*net.UnixConn
	packet[net.UnixConn, *net.UnixConn]
}

// ReadFrom is [net.UnixConn.ReadFrom].
func (c *UnixgramConn) ReadFrom(b []byte) (n int, addr net.Addr, err error) {
	err = c.read(func() (int, error) { n, addr, err = c.inner().ReadFrom(b); return n, err })
	return n, addr, err
}

// Read is [net.UnixConn.Read].
func (c *UnixgramConn) Read(b []byte) (n int, err error) {
	err = c.read(func() (int, error) { n, err = c.inner().Read(b); return n, err })
	return n, err
}

// ReadFromUnix is [net.UnixConn.ReadFromUnix].
func (c *UnixgramConn) ReadFromUnix(b []byte) (n int, addr *net.UnixAddr, err error) {
	err = c.read(func() (int, error) { n, addr, err = c.inner().ReadFromUnix(b); return n, err })
	return n, addr, err
}

// ReadMsgUnix is [net.UnixConn.ReadMsgUnix].
func (c *UnixgramConn) ReadMsgUnix(b, oob []byte) (n, oobn, flags int, addr *net.UnixAddr, err error) {
	err = c.read(func() (int, error) { n, oobn, flags, addr, err = c.inner().ReadMsgUnix(b, oob); return n, err })
	return n, oobn, flags, addr, err
}

// SetReadDeadline is [net.UnixConn.SetReadDeadline].
func (c *UnixgramConn) SetReadDeadline(t time.Time) error { return c.Gate.SetDeadline(t) }

// SetDeadline is [net.UnixConn.SetDeadline].
func (c *UnixgramConn) SetDeadline(t time.Time) error {
	c.Gate.SetDeadline(t)
	return c.SetWriteDeadline(t)
}

// Close closes the socket in this process; it is not handed over any more.
func (c *UnixgramConn) Close() error {
	c.closing()
	return c.inner().Close()
}

// A packet is what both types have besides the socket.
type packet[T any, P packetConn[T]] struct {
	Gate  *gate.Gate
	sock  *Socket
	socks *Set

	now    atomic.Pointer[T]              // another one once it was mended
	open   func() (net.PacketConn, error) // opens the same socket again
	broken atomic.Bool                    // a write has failed since the socket was shut down

	// reopening is held while the socket is closed or opened anew, which may wait
	// for a disk; it is taken before Set.mu.
	reopening sync.Mutex
	shut      bool // closed, to be replaced; guarded by reopening
}

type packetConn[T any] interface {
	*T
	net.PacketConn
	syscall.Conn
}

func (p *packet[T, P]) inner() P { return p.now.Load() }

func (p *packet[T, P]) closing() {
	p.socks.Remove(p.sock)
	p.Gate.Set(gate.Closed)
	p.sock.freeToClose()
}

// newPacketConn puts a gate before the reads of a packet conn.
func newPacketConn(inner net.PacketConn, g *gate.Gate, sock *Socket, s *Set, open func() (net.PacketConn, error)) (net.PacketConn, syscall.RawConn, error) {
	switch c := inner.(type) {
	case *net.UDPConn:
		u := &UDPConn{UDPConn: c}
		raw, err := u.init(c, g, sock, s, open)
		return u, raw, err
	case *net.UnixConn:
		u := &UnixgramConn{UnixConn: c}
		raw, err := u.init(c, g, sock, s, open)
		return u, raw, err
	}
	return nil, nil, net.UnknownNetworkError(inner.LocalAddr().Network())
}

func (p *packet[T, P]) init(c P, g *gate.Gate, sock *Socket, s *Set, open func() (net.PacketConn, error)) (syscall.RawConn, error) {
	p.Gate, p.sock, p.socks, p.open = g, sock, s, open
	p.now.Store(c)
	sock.whole = p.makeWhole
	return c.SyscallConn()
}
