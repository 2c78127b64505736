//go:build unix

package grace

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// theMaster is the program that has started this one, if it is one of the known
// masters. Like the hand-over it is looked for before any init function runs.
var theMaster, theMasterErr = takeMaster()

// masters are the known ones, in the order in which they are looked for. Each
// takes its variables out of the environment, marks its descriptors
// close-on-exec, and gives nil if it is not there.
var masters = []func() (*master, error){
	startServerMaster,
	einhornMaster,
	socketmasterMaster,
	systemdMaster,
}

// takeMaster gives the first of masters that is there. A process that was
// handed its sockets by an old one has no master, whatever the environment
// says: its variables are taken away all the same.
func takeMaster() (found *master, err error) {
	handedOver := inherited != nil
	for _, look := range masters {
		m, lerr := look()
		if found == nil && err == nil && !handedOver {
			found, err = m, lerr
		}
	}
	return found, err
}

// dishonest is an ErrMaster that names the variable.
func dishonest(variable, value, format string, args ...any) error {
	return fmt.Errorf("grace: %w: %s=%q: %s", ErrMaster, variable, value, fmt.Sprintf(format, args...))
}

// takeVariable takes a variable out of the environment.
func takeVariable(name string) (value string, ok bool) {
	value, ok = os.LookupEnv(name)
	os.Unsetenv(name)
	return value, ok
}

// takeSocket looks at a descriptor that a master says it has passed, and marks
// it close-on-exec. The error says what is wrong with it, without the variable.
func takeSocket(number string) (masterSocket, error) {
	fd, err := strconv.Atoi(strings.TrimSpace(number))
	if err != nil {
		return masterSocket{}, fmt.Errorf("%q is not a number", number)
	}
	return inspectSocket(fd)
}

func inspectSocket(fd int) (s masterSocket, err error) {
	if fd < 0 {
		return s, fmt.Errorf("descriptor %d is below zero", fd)
	}
	// A descriptor that came through exec is not close-on-exec; one that is was
	// opened by this process, and the master's is closed.
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	if err != nil || flags&unix.FD_CLOEXEC != 0 {
		return s, fmt.Errorf("descriptor %d is closed", fd)
	}
	typ, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return s, fmt.Errorf("descriptor %d is not a socket", fd)
	}
	unix.CloseOnExec(fd)
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return s, fmt.Errorf("descriptor %d: %w", fd, os.NewSyscallError("getsockname", err))
	}
	s.fd = fd
	s.Kind, s.Master = kindListener, true
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		s.Network, s.Bound = "tcp", netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port)).String()
	case *unix.SockaddrInet6:
		ip := netip.AddrFrom16(sa.Addr)
		if sa.ZoneId != 0 {
			if i, err := net.InterfaceByIndex(int(sa.ZoneId)); err == nil {
				ip = ip.WithZone(i.Name)
			}
		}
		s.Network, s.Bound = "tcp", netip.AddrPortFrom(ip, uint16(sa.Port)).String()
		v, err := unix.GetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY)
		s.V6Only = err == nil && v == 1
	case *unix.SockaddrUnix:
		s.Network, s.Bound = "unix", sa.Name
	default:
		return s, fmt.Errorf("descriptor %d is a socket of an unknown family", fd)
	}
	s.Addr = s.Bound
	switch typ {
	case unix.SOCK_STREAM, unix.SOCK_SEQPACKET:
		if typ == unix.SOCK_SEQPACKET {
			s.Network = "unixpacket"
		}
		if on, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err != nil || on == 0 {
			return s, fmt.Errorf("descriptor %d is a socket that does not listen", fd)
		}
	case unix.SOCK_DGRAM:
		s.Kind = kindPacket
		if s.Network == "tcp" {
			s.Network = "udp"
		} else {
			s.Network = "unixgram"
		}
	default:
		return s, fmt.Errorf("descriptor %d is a socket of type %d", fd, typ)
	}
	return s, nil
}

func startServerMaster() (*master, error)  { return nil, nil }
func einhornMaster() (*master, error)      { return nil, nil }
func socketmasterMaster() (*master, error) { return nil, nil }
