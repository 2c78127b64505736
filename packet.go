package grace

import (
	"net"
	"net/netip"
	"syscall"
	"time"
)

// A UDPConn is what [Upgrader.ListenPacket] gives for udp, udp4 and udp6: a
// [net.UDPConn] whose reads wait until this process is ready, and again once
// it has handed over; after Done they return net.ErrClosed. Writes always
// work. What SyscallConn gives reads like that too, as golang.org/x/net's ReadBatch
// and quic-go do; what is read in its Control, or of File's copy, does not wait.
//
// One with SO_REUSEPORT that was not handed over, beside others of the same
// address, is given packets by the kernel from ListenPacket on. They wait until
// this process is ready, and are lost if it never is: to bind such a socket later
// would leave it without an address, and the kernel has no other way to keep
// packets from it.
type UDPConn struct {
	*net.UDPConn
	packet
}

// ReadFrom is [net.UDPConn.ReadFrom].
func (c *UDPConn) ReadFrom(b []byte) (n int, addr net.Addr, err error) {
	err = c.gate.pass(func() (err error) { n, addr, err = c.UDPConn.ReadFrom(b); return err })
	return n, addr, err
}

// Read is [net.UDPConn.Read].
func (c *UDPConn) Read(b []byte) (n int, err error) {
	err = c.gate.pass(func() (err error) { n, err = c.UDPConn.Read(b); return err })
	return n, err
}

// ReadFromUDP is [net.UDPConn.ReadFromUDP].
func (c *UDPConn) ReadFromUDP(b []byte) (n int, addr *net.UDPAddr, err error) {
	err = c.gate.pass(func() (err error) { n, addr, err = c.UDPConn.ReadFromUDP(b); return err })
	return n, addr, err
}

// ReadFromUDPAddrPort is [net.UDPConn.ReadFromUDPAddrPort].
func (c *UDPConn) ReadFromUDPAddrPort(b []byte) (n int, addr netip.AddrPort, err error) {
	err = c.gate.pass(func() (err error) { n, addr, err = c.UDPConn.ReadFromUDPAddrPort(b); return err })
	return n, addr, err
}

// ReadMsgUDP is [net.UDPConn.ReadMsgUDP].
func (c *UDPConn) ReadMsgUDP(b, oob []byte) (n, oobn, flags int, addr *net.UDPAddr, err error) {
	err = c.gate.pass(func() (err error) { n, oobn, flags, addr, err = c.UDPConn.ReadMsgUDP(b, oob); return err })
	return n, oobn, flags, addr, err
}

// ReadMsgUDPAddrPort is [net.UDPConn.ReadMsgUDPAddrPort].
func (c *UDPConn) ReadMsgUDPAddrPort(b, oob []byte) (n, oobn, flags int, addr netip.AddrPort, err error) {
	err = c.gate.pass(func() (err error) {
		n, oobn, flags, addr, err = c.UDPConn.ReadMsgUDPAddrPort(b, oob)
		return err
	})
	return n, oobn, flags, addr, err
}

// SetReadDeadline is [net.UDPConn.SetReadDeadline].
func (c *UDPConn) SetReadDeadline(t time.Time) error { return c.gate.setDeadline(t) }

// SetDeadline is [net.UDPConn.SetDeadline].
func (c *UDPConn) SetDeadline(t time.Time) error {
	c.gate.setDeadline(t)
	return c.SetWriteDeadline(t)
}

// Close closes the socket in this process; it is not handed over any more.
func (c *UDPConn) Close() error {
	c.closing()
	return c.UDPConn.Close()
}

// A UnixgramConn is what [Upgrader.ListenPacket] gives for unixgram; its reads
// behave like those of [UDPConn].
type UnixgramConn struct {
	*net.UnixConn
	packet
}

// ReadFrom is [net.UnixConn.ReadFrom].
func (c *UnixgramConn) ReadFrom(b []byte) (n int, addr net.Addr, err error) {
	err = c.gate.pass(func() (err error) { n, addr, err = c.UnixConn.ReadFrom(b); return err })
	return n, addr, err
}

// Read is [net.UnixConn.Read].
func (c *UnixgramConn) Read(b []byte) (n int, err error) {
	err = c.gate.pass(func() (err error) { n, err = c.UnixConn.Read(b); return err })
	return n, err
}

// ReadFromUnix is [net.UnixConn.ReadFromUnix].
func (c *UnixgramConn) ReadFromUnix(b []byte) (n int, addr *net.UnixAddr, err error) {
	err = c.gate.pass(func() (err error) { n, addr, err = c.UnixConn.ReadFromUnix(b); return err })
	return n, addr, err
}

// ReadMsgUnix is [net.UnixConn.ReadMsgUnix].
func (c *UnixgramConn) ReadMsgUnix(b, oob []byte) (n, oobn, flags int, addr *net.UnixAddr, err error) {
	err = c.gate.pass(func() (err error) { n, oobn, flags, addr, err = c.UnixConn.ReadMsgUnix(b, oob); return err })
	return n, oobn, flags, addr, err
}

// SetReadDeadline is [net.UnixConn.SetReadDeadline].
func (c *UnixgramConn) SetReadDeadline(t time.Time) error { return c.gate.setDeadline(t) }

// SetDeadline is [net.UnixConn.SetDeadline].
func (c *UnixgramConn) SetDeadline(t time.Time) error {
	c.gate.setDeadline(t)
	return c.SetWriteDeadline(t)
}

// Close closes the socket in this process; it is not handed over any more.
func (c *UnixgramConn) Close() error {
	c.closing()
	return c.UnixConn.Close()
}

// A packet is what both have besides the socket.
type packet struct {
	gate  *gate
	sock  *socket
	socks *sockets
}

func (p packet) closing() {
	p.socks.remove(p.sock)
	p.gate.set(gateClosed)
	p.sock.freeToClose()
}

// newPacketConn puts a gate before the reads of a packet conn.
func newPacketConn(inner net.PacketConn, g *gate, sock *socket, s *sockets) (net.PacketConn, syscall.RawConn, error) {
	p := packet{gate: g, sock: sock, socks: s}
	switch c := inner.(type) {
	case *net.UDPConn:
		raw, err := c.SyscallConn()
		return &UDPConn{c, p}, raw, err
	case *net.UnixConn:
		raw, err := c.SyscallConn()
		return &UnixgramConn{c, p}, raw, err
	}
	return nil, nil, net.UnknownNetworkError(inner.LocalAddr().Network())
}
