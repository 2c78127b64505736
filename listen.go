package grace

import (
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/julofinance/grace/v3/internal/fd"
	"github.com/julofinance/grace/v3/internal/sockets"
)

// How a program asks for its sockets.

// Listen gives the listener of that name that the old process handed over, or
// opens one. network is tcp, tcp4, tcp6, unix or unixpacket. Names match by
// what the old process asked for, several equal ones in order, then by what
// the kernel has bound. Port 0 keeps the port that it got first. A socket that
// systemd has passed is found by what it is bound to, and with the network
// "systemd" by its FileDescriptorName=.
//
// Listen belongs before Ready: what nothing has asked for by then is left to the old
// process, and its address is in use until that is gone.
//
// Accept waits until [Upgrader.Ready], stops when a new process accepts, and
// returns net.ErrClosed after Done. The file of a unix socket stays until the
// last stop; one that a crash has left behind is replaced, and if a process has a
// socket bound there the error is ErrPathInUse. A program must not remove it; one
// that does all the same gets a new socket there.
//
// What it accepts has the methods of a [*net.TCPConn] or [*net.UnixConn] and is none,
// since the library observes it and may move it: assert an interface, as
// interface{ CloseWrite() error }. CloseRead, SyscallConn, File, the setters of socket
// options and the methods of a unix socket are there; one of TCP is an [io.ReaderFrom] and
// [io.WriterTo] that uses sendfile and splice. NetConn gives the net.TCPConn or net.UnixConn
// itself, with the deadlines that were set; what is read or written there the library
// does not see, and the connection does not move.
func (u *Upgrader) Listen(network, addr string) (net.Listener, error) {
	return u.ListenWith(u.opt.listenConfig, network, addr)
}

// ListenWith is Listen with a configuration for this socket, in place of the option
// [ListenConfig], whose documentation says what it means for an inherited one.
func (u *Upgrader) ListenWith(lc net.ListenConfig, network, addr string) (net.Listener, error) {
	l, err := u.socks.Listen(lc, network, addr)
	return u.listening(l, err, network, addr)
}

// ListenFunc is Listen for a socket that something else opens: a framework, code that
// enters another network namespace, or sets what a ListenConfig can't. It gives the
// listener of that name that the old process handed over, and else calls open and makes
// what that gives one that is handed over, as [Upgrader.AddListener] does. So in a new
// process, where the old one still has the address, nothing is bound again.
func (u *Upgrader) ListenFunc(network, addr string, open func() (net.Listener, error)) (net.Listener, error) {
	first := func(string, string) (sockets.Opened, error) {
		ln, err := open()
		if err != nil {
			return sockets.Opened{}, err
		}
		l, err := takeListener(ln)
		return sockets.Opened{Listener: l}, err
	}
	l, err := u.socks.ListenBy(u.opt.listenConfig, first, u.reopen, network, addr)
	return u.listening(l, err, network, addr)
}

// AddListener makes ln, which something else has opened, a listener like one of Listen:
// it is handed over, and only what it returns is to be used from then on. The next
// generation finds it by Listen, ListenFunc or AddListener of the same address. ln must
// be a [*net.TCPListener] or [*net.UnixListener], or have their method File, as what
// embeds one; an error closes it.
//
// A new process gets here only if it could open ln, while the old one has the address: a
// unix socket whose file it has replaced is served from here on; for a TCP socket that has
// SO_REUSEPORT the inherited one is given, and ln is closed together with the
// connections that came to it until then. A plain TCP socket can't be bound again
// ("address already in use"): give the framework u.Listen as its listen function, or call
// ListenFunc, which asks before it opens. [Upgrader.Inherited] lists what is there.
func (u *Upgrader) AddListener(ln net.Listener) (net.Listener, error) {
	if ln == nil {
		return nil, errors.New("grace: AddListener: the listener is nil")
	}
	if l, ok := ln.(*sockets.Listener); ok {
		return l, nil
	}
	given, err := takeListener(ln)
	if err != nil {
		return nil, fmt.Errorf("grace: AddListener: %w", err)
	}
	used := false
	take := func(string, string) (sockets.Opened, error) { used = true; return sockets.Opened{Listener: given}, nil }
	network, addr := given.Addr().Network(), given.Addr().String()
	l, err := u.socks.ListenBy(u.opt.listenConfig, take, u.reopen, network, addr)
	if !used {
		given.Close()
	}
	return u.listening(l, err, network, addr)
}

// reopen opens a socket again that the program's own code had opened.
func (u *Upgrader) reopen(network, addr string) (sockets.Opened, error) {
	return sockets.OpenListener(u.opt.listenConfig, network, addr)
}

// takeListener gives the listener of package net that ln is, or embeds. Then ln is not to
// be used any more; an error closes it.
func takeListener(ln net.Listener) (l fd.Listener, err error) {
	if own, ok := ln.(interface{ SetUnlinkOnClose(bool) }); ok {
		own.SetUnlinkOnClose(false) // the path outlives this process
	}
	switch own := ln.(type) {
	case *net.TCPListener:
		return own, nil
	case *net.UnixListener:
		return own, nil
	}
	defer ln.Close()
	f, ok := ln.(interface{ File() (*os.File, error) })
	if !ok {
		return nil, fmt.Errorf("%w: a %T can't be handed over; give the TCP or unix listener that is below it", errors.ErrUnsupported, ln)
	}
	file, err := f.File()
	if err != nil {
		return nil, fmt.Errorf("%T: %w", ln, err)
	}
	defer file.Close()
	own, err := net.FileListener(file)
	if err != nil {
		return nil, fmt.Errorf("%T: %w", ln, err)
	}
	if l, ok = own.(fd.Listener); !ok { // not reached
		own.Close()
		return nil, fmt.Errorf("%w: a %T can't be handed over", errors.ErrUnsupported, own)
	}
	return l, nil
}

// listening is the end of a call of Listen and the like.
func (u *Upgrader) listening(l *sockets.Listener, err error, network, addr string) (net.Listener, error) {
	if err != nil {
		return nil, u.listenError(network, addr, err) // not l, a nil pointer
	}
	if l.Sock.Master && u.parent == nil {
		u.log.Info("grace: listening on the master's socket", "asked", network+" "+addr, "used", l.Addr().Network()+" "+l.Addr().String())
	}
	return l, nil
}

// ListenPacket is Listen for packets: udp, udp4, udp6 and unixgram. Reads wait until
// [Upgrader.Ready], stop when a new process accepts, and return net.ErrClosed after Done: no
// error for an actor that serves packets. Writes always work.
//
// What it gives has every method of a [*net.UDPConn], or for unixgram of a [*net.UnixConn],
// and is none, since its reads wait. So besides a [net.PacketConn] it is a [net.Conn] and a
// [syscall.Conn]. Assert an interface with those methods that the program calls, as
//
//	interface {
//		ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error)
//		WriteToUDPAddrPort(b []byte, addr netip.AddrPort) (int, error)
//	}
//
// Every method that reads waits, ReadMsgUDP and the Read of a SyscallConn too, as quic-go
// and golang.org/x/net use it. Its Control does not, nor what File gives: a copy that both
// processes would read.
//
// A UDP socket that is bound to a wildcard address answers, on Linux, from the address that
// the peer has asked; docs/udp.md says by which methods, and what it costs. One with
// SO_REUSEPORT that was not handed over, beside others of the same address, is given
// packets by the kernel from ListenPacket on: they wait until this process is ready, and are
// lost if it never is.
func (u *Upgrader) ListenPacket(network, addr string) (net.PacketConn, error) {
	return u.ListenPacketWith(u.opt.listenConfig, network, addr)
}

// ListenPacketWith is ListenPacket with a configuration for this socket, in place of the
// option [ListenConfig].
func (u *Upgrader) ListenPacketWith(lc net.ListenConfig, network, addr string) (net.PacketConn, error) {
	p, err := u.socks.ListenPacket(lc, network, addr)
	if err != nil {
		return nil, u.listenError(network, addr, err)
	}
	return p, nil
}

// listenError gives the reason that is behind err, where there is one. A process
// that stops has given back what it had inherited, and the address is in use.
func (u *Upgrader) listenError(network, addr string, err error) error {
	if u.ctx.Err() != nil {
		return fmt.Errorf("grace: listen %s %s: %w", network, addr, ErrStopped)
	}
	if errors.Is(err, errAddrInUse) {
		if p := u.parent; p != nil && p.claims.Load() && !p.isGone() {
			return fmt.Errorf("%w; the old process, pid %d, may have it: call Listen before Ready to be given what that has, or try again when it is gone", err, p.m.Pid)
		}
		return u.blameScript(err, 0)
	}
	return err
}
