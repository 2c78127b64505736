package sockets

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/julofinance/grace/v3/internal/fd"
	"github.com/julofinance/grace/v3/internal/gate"
)

// A socket of packets that another process has shut down, for all processes that
// have it, sends nothing any more, or is sent nothing, and nothing takes that
// back (shutdown(2); sk_shutdown in Linux's net/ipv4/udp.c and
// net/unix/af_unix.c). So another one takes its place, behind the value that the
// user has: its methods, the ones below and those of packet.go, work on the
// present socket.

// read calls f, which reads, whenever the gate lets it, and again if the socket
// that was read was replaced meanwhile.
func (p *packet[T, P]) read(f func() (n int, err error)) error {
	for {
		var n int
		var of P
		err := p.Gate.Pass(func() (err error) {
			of = p.inner()
			n, err = f()
			return err
		})
		switch {
		case err == nil:
			if n > 0 || !p.wasShutDown() || !p.mendNow() {
				return nil
			}
		case !errors.Is(err, net.ErrClosed) || of == nil || of == p.inner() || p.Gate.IsClosed():
			return err
		}
	}
}

// wrote looks at the error of a write. Nothing else shows that a UDP socket does
// not send any more.
func (p *packet[T, P]) wrote(err error) error {
	if errors.Is(err, fd.ErrBrokenPipe) && p.sock.shared.Load() && !p.sock.Master {
		p.broken.Store(true)
		p.mendNow()
	}
	return err
}

// wasShutDown reports whether the socket was shut down by another process: it was
// whole when it was handed over.
func (p *packet[T, P]) wasShutDown() bool {
	switch {
	case p.sock.Master || !p.sock.shared.Load():
		return false
	case p.broken.Load():
		return true
	}
	return !p.sock.shutBefore.Load() && p.sock.isShutDown()
}

// mendNow mends the socket while reads wait; false if this process is not the one
// that serves, or is at its end.
func (p *packet[T, P]) mendNow() bool {
	p.socks.mu.Lock()
	defer p.socks.mu.Unlock()
	if !p.socks.open || p.Gate.IsClosed() {
		return p.Gate.IsShut()
	}
	p.Gate.Set(gate.Shut)
	p.socks.mend(p.sock)
	return true
}

// makeWhole is Listener.makeWhole for packets.
func (p *packet[T, P]) makeWhole(ctx context.Context) (again bool, err error) {
	p.reopening.Lock()
	defer p.reopening.Unlock()
	p.sock.show()
	if p.isYielded() { // the new process has it by now; a roll back mends again
		return false, nil
	}
	if !p.shut && p.isSick(ctx) && p.socks.shutGate(ctx, p.Gate) {
		p.sock.unlink() // its address must be free for the next one
		p.sock.Closing.Lock()
		p.sock.freeToClose()
		p.inner().Close()
		p.sock.Closing.Unlock()
		p.shut = true
	}
	if !p.shut {
		p.socks.reopenGate(ctx, p.Gate)
		return false, nil
	}
	inner, err := p.open()
	if err != nil {
		return true, err
	}
	err = p.replace(ctx, inner)
	return !p.isYielded(), err
}

func (p *packet[T, P]) isYielded() bool {
	p.socks.mu.Lock()
	defer p.socks.mu.Unlock()
	return p.sock.yielded
}

// isSick reports whether another socket must take the place of this one: it was
// shut down, or its path removed. In the second case it waits until what is
// queued was read.
func (p *packet[T, P]) isSick(ctx context.Context) bool {
	if p.wasShutDown() {
		return true
	}
	if !p.sock.lost() || !p.sock.shared.Load() {
		return false
	}
	for end := time.Now().Add(100 * time.Millisecond); readable(p.sock) && time.Now().Before(end) && ctx.Err() == nil; {
		time.Sleep(time.Millisecond)
	}
	return true
}

func (p *packet[T, P]) replace(ctx context.Context, inner net.PacketConn) error {
	c, ok := inner.(P)
	if !ok { // not reached: it is one of the same network
		inner.Close()
		return net.UnknownNetworkError(inner.LocalAddr().Network())
	}
	raw, err := c.SyscallConn()
	if err == nil {
		err = p.sock.setRaw(raw)
	}
	if err != nil {
		c.Close()
		return err
	}
	p.sock.refile()
	if !p.install(ctx, c) {
		p.sock.unlink()
		c.Close()
		return ctx.Err()
	}
	p.shut = false
	return nil
}

// install lets reads go on, on c; false if they are not to.
func (p *packet[T, P]) install(ctx context.Context, c P) bool {
	p.socks.mu.Lock()
	defer p.socks.mu.Unlock()
	if ctx.Err() != nil || p.Gate.IsClosed() || p.sock.yielded {
		return false
	}
	p.now.Store(c)
	p.broken.Store(false)
	p.Gate.Replace(c.SetReadDeadline)
	p.Gate.Set(gate.Open)
	return !p.Gate.IsClosed() // it may have been closed meanwhile
}

// WriteTo is [net.UDPConn.WriteTo].
func (c *UDPConn) WriteTo(b []byte, addr net.Addr) (int, error) {
	if udp, ok := addr.(*net.UDPAddr); ok {
		return c.WriteToUDP(b, udp)
	}
	return c.inner().WriteTo(b, addr)
}

// WriteToUDP is [net.UDPConn.WriteToUDP].
func (c *UDPConn) WriteToUDP(b []byte, addr *net.UDPAddr) (n int, err error) {
	peer := addr.AddrPort()
	if source, ok := c.sources.To(peer); ok {
		n, _, err = c.inner().WriteMsgUDP(b, source.Bytes(), addr)
		if !c.sources.Refused(peer, err) {
			return n, c.wrote(err)
		}
	}
	n, err = c.inner().WriteToUDP(b, addr)
	return n, c.wrote(err)
}

// WriteToUDPAddrPort is [net.UDPConn.WriteToUDPAddrPort].
func (c *UDPConn) WriteToUDPAddrPort(b []byte, addr netip.AddrPort) (n int, err error) {
	if source, ok := c.sources.To(addr); ok {
		n, _, err = c.inner().WriteMsgUDPAddrPort(b, source.Bytes(), addr)
		if !c.sources.Refused(addr, err) {
			return n, c.wrote(err)
		}
	}
	n, err = c.inner().WriteToUDPAddrPort(b, addr)
	return n, c.wrote(err)
}

// WriteMsgUDP is [net.UDPConn.WriteMsgUDP].
func (c *UDPConn) WriteMsgUDP(b, oob []byte, addr *net.UDPAddr) (n, oobn int, err error) {
	n, oobn, err = c.inner().WriteMsgUDP(b, oob, addr)
	return n, oobn, c.wrote(err)
}

// WriteMsgUDPAddrPort is [net.UDPConn.WriteMsgUDPAddrPort].
func (c *UDPConn) WriteMsgUDPAddrPort(b, oob []byte, addr netip.AddrPort) (n, oobn int, err error) {
	n, oobn, err = c.inner().WriteMsgUDPAddrPort(b, oob, addr)
	return n, oobn, c.wrote(err)
}

// Write, LocalAddr, RemoteAddr, SetWriteDeadline, SetReadBuffer, SetWriteBuffer,
// and File are those of net.UDPConn.

func (c *UDPConn) Write(b []byte) (int, error)        { return c.inner().Write(b) }
func (c *UDPConn) LocalAddr() net.Addr                { return c.inner().LocalAddr() }
func (c *UDPConn) RemoteAddr() net.Addr               { return c.inner().RemoteAddr() }
func (c *UDPConn) SetWriteDeadline(t time.Time) error { return c.inner().SetWriteDeadline(t) }
func (c *UDPConn) SetReadBuffer(n int) error          { return c.inner().SetReadBuffer(n) }
func (c *UDPConn) SetWriteBuffer(n int) error         { return c.inner().SetWriteBuffer(n) }
func (c *UDPConn) File() (*os.File, error)            { return c.inner().File() }

// WriteTo, WriteToUnix, WriteMsgUnix, Write, LocalAddr, RemoteAddr, SetWriteDeadline,
// SetReadBuffer, SetWriteBuffer, CloseRead, CloseWrite and File are those
// of net.UnixConn.

func (c *UnixgramConn) WriteTo(b []byte, addr net.Addr) (int, error) {
	return c.inner().WriteTo(b, addr)
}
func (c *UnixgramConn) WriteToUnix(b []byte, addr *net.UnixAddr) (int, error) {
	return c.inner().WriteToUnix(b, addr)
}
func (c *UnixgramConn) WriteMsgUnix(b, oob []byte, addr *net.UnixAddr) (n, oobn int, err error) {
	return c.inner().WriteMsgUnix(b, oob, addr)
}
func (c *UnixgramConn) Write(b []byte) (int, error)        { return c.inner().Write(b) }
func (c *UnixgramConn) LocalAddr() net.Addr                { return c.inner().LocalAddr() }
func (c *UnixgramConn) RemoteAddr() net.Addr               { return c.inner().RemoteAddr() }
func (c *UnixgramConn) SetWriteDeadline(t time.Time) error { return c.inner().SetWriteDeadline(t) }
func (c *UnixgramConn) SetReadBuffer(n int) error          { return c.inner().SetReadBuffer(n) }
func (c *UnixgramConn) SetWriteBuffer(n int) error         { return c.inner().SetWriteBuffer(n) }
func (c *UnixgramConn) CloseRead() error                   { return c.inner().CloseRead() }
func (c *UnixgramConn) CloseWrite() error                  { return c.inner().CloseWrite() }
func (c *UnixgramConn) File() (*os.File, error)            { return c.inner().File() }
