package pktinfo

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// enable asks the kernel for the local address of each packet that c reads. What waits
// in c already comes with it as well: see ip_cmsg_recv_offset in Linux's
// net/ipv4/ip_sockglue.c and ip6_datagram_recv_common_ctl in net/ipv6/datagram.c.
func enable(c *net.UDPConn) (f family) {
	raw, err := c.SyscallConn()
	if err != nil {
		return none
	}
	raw.Control(func(fd uintptr) {
		domain, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DOMAIN)
		switch {
		case err != nil:
		case domain == unix.AF_INET && unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_PKTINFO, 1) == nil:
			f = inet
		case domain == unix.AF_INET6 && unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_RECVPKTINFO, 1) == nil:
			f = inet6
		}
	})
	return f
}

// parse gives the local address that a packet's control messages tell of: an invalid one
// if it can't be the source of an answer. It reports whether they tell of one at all.
func parse(f family, oob []byte) (to local, ok bool) {
	for len(oob) > 0 {
		h, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			return local{}, false
		}
		switch {
		case f == inet && h.Level == unix.SOL_IP && h.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			// struct in_pktinfo: the interface, then the local address of the packet, then
			// what stands in its header, which may be a broadcast address. The second is 0
			// for a packet that was there when the kernel was asked.
			specDst, dst := netip.AddrFrom4([4]byte(data[4:8])), netip.AddrFrom4([4]byte(data[8:12]))
			switch {
			case dst.IsMulticast():
			case specDst.IsUnspecified():
				to.addr = dst
			default:
				to.addr = specDst
			}
			return to, true
		case f == inet6 && h.Level == unix.SOL_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			// struct in6_pktinfo: the address, then the interface.
			dst := netip.AddrFrom16([16]byte(data[:16])).Unmap()
			if !dst.IsMulticast() {
				to.addr = dst
				if dst.Is6() && dst.IsLinkLocalUnicast() {
					to.ifindex = binary.NativeEndian.Uint32(data[16:20])
				}
			}
			return to, true
		}
		oob = rest
	}
	return local{}, false
}

const controlSize = (unix.SizeofCmsghdr + unix.SizeofInet6Pktinfo + 7) &^ 7

// put makes c the message that sets the source, and reports whether that can be one of
// the socket's. On a socket of AF_INET6 the message of IPv6 serves for a packet to an IPv4
// peer as well, with the address mapped: see ip_cmsg_send in net/ipv4/ip_sockglue.c.
func (c *Control) put(f family, from local) bool {
	data := c.b[unix.SizeofCmsghdr:]
	if f == inet6 {
		addr := from.addr.As16()
		copy(data[:16], addr[:])
		binary.NativeEndian.PutUint32(data[16:20], from.ifindex)
		c.header(unix.SOL_IPV6, unix.IPV6_PKTINFO, unix.SizeofInet6Pktinfo)
		return true
	}
	if !from.addr.Is4() {
		return false
	}
	addr := from.addr.As4()
	copy(data[4:8], addr[:]) // ipi_spec_dst
	c.header(unix.SOL_IP, unix.IP_PKTINFO, unix.SizeofInet4Pktinfo)
	return true
}

// header puts a struct cmsghdr before n bytes of data: its first field is a size_t.
func (c *Control) header(level, kind uint32, n int) {
	const ints = unix.SizeofCmsghdr - 8
	if ints == 8 {
		binary.NativeEndian.PutUint64(c.b[:], uint64(unix.CmsgLen(n)))
	} else {
		binary.NativeEndian.PutUint32(c.b[:], uint32(unix.CmsgLen(n)))
	}
	binary.NativeEndian.PutUint32(c.b[ints:], level)
	binary.NativeEndian.PutUint32(c.b[ints+4:], kind)
	c.n = unix.CmsgSpace(n)
}

// isBadSource reports whether err may be the kernel's word on a source that is no
// address of this machine, or of none of the interfaces that lead to the peer.
func isBadSource(err error) bool {
	var errno unix.Errno
	if !errors.As(err, &errno) {
		return false
	}
	switch errno {
	case unix.EINVAL, unix.ENETUNREACH, unix.EADDRNOTAVAIL, unix.ENODEV:
		return true
	}
	return false
}
