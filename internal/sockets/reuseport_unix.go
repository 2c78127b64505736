//go:build unix

package sockets

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"

	"github.com/julofinance/grace/v3/internal/fd"
	"golang.org/x/sys/unix"
)

// With SO_REUSEPORT the kernel spreads connections over all sockets that listen
// on a port, also over those of a process that is not ready: should it fail, they
// are reset, though another process was there to serve them. So Listen only binds
// such a socket, and fails if the address is taken; the socket listens from the
// moment at which its gate opens.
//
// net.ListenConfig has no way to bind only. But Control sees the socket when net
// has resolved the address and set its own options, and before it binds: a copy
// of the descriptor is bound here, and net is told to give up its own.

// errBound tells net to give up its own socket.
var errBound = errors.New("bound already")

// openLate opens a TCP socket with lc, which has a Control. If Control has set
// SO_REUSEPORT, late is returned instead of l: bound, and not listening yet.
func openLate(lc net.ListenConfig, network, addr string) (late fd.Listener, l net.Listener, err error) {
	bound, control := -1, lc.Control
	lc.Control = func(network, addr string, c syscall.RawConn) error {
		if bound >= 0 { // where MPTCP fails, net tries again without it
			return errBound
		}
		if err := control(network, addr, c); err != nil {
			return err
		}
		cerr := c.Control(func(n uintptr) { bound, err = bindReusable(int(n), network, addr) })
		if err = errors.Join(cerr, err); err == nil && bound >= 0 {
			err = errBound
		}
		return err
	}
	l, err = lc.Listen(context.Background(), network, addr)
	if bound >= 0 {
		late, err = fd.NewListener(bound)
	}
	return late, l, err
}

// bindReusable binds a copy of fd, if fd has SO_REUSEPORT; else it returns -1.
func bindReusable(fd int, network, addr string) (int, error) {
	if on, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT); err != nil || on == 0 {
		return -1, nil
	}
	to, err := sockaddr(network, addr)
	if err != nil {
		return -1, err
	}
	copied, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("fcntl", err)
	}
	if err := unix.Bind(copied, to); err != nil {
		unix.Close(copied)
		return -1, os.NewSyscallError("bind", err)
	}
	return copied, nil
}

// sockaddr parses what net passes to Control: tcp4 or tcp6, and an address whose
// host is an IP address or empty.
func sockaddr(network, addr string) (unix.Sockaddr, error) {
	host, service, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	port, err := strconv.Atoi(service)
	if err != nil {
		return nil, err
	}
	ip := netip.IPv6Unspecified()
	if host != "" {
		if ip, err = netip.ParseAddr(host); err != nil {
			return nil, err
		}
	}
	if strings.HasSuffix(network, "4") {
		if ip.IsUnspecified() {
			ip = netip.IPv4Unspecified()
		}
		return &unix.SockaddrInet4{Port: port, Addr: ip.Unmap().As4()}, nil
	}
	if ip.IsUnspecified() { // also 0.0.0.0: net has one socket for both families
		ip = netip.IPv6Unspecified()
	}
	to := &unix.SockaddrInet6{Port: port, Addr: ip.As16()}
	if zone := ip.Zone(); zone != "" {
		if ifi, err := net.InterfaceByName(zone); err == nil {
			to.ZoneId = uint32(ifi.Index)
		} else if n, err := strconv.ParseUint(zone, 10, 32); err == nil {
			to.ZoneId = uint32(n)
		} else {
			return nil, err
		}
	}
	return to, nil
}

// listenNow is listen(2), with the longest queue, as in net.Listen.
func (sock *Socket) listenNow() (err error) {
	if cerr := sock.Control(func(fd uintptr) { err = os.NewSyscallError("listen", unix.Listen(int(fd), -1)) }); cerr != nil {
		return cerr
	}
	return err
}
