// Package pktinfo lets a UDP socket that is bound to a wildcard address answer each peer
// from the local address that the peer has sent to.
//
// A socket bound to 0.0.0.0 or [::] gets what is sent to any address of the machine.
// sendto(2) lets the kernel choose the source of an answer by the route to the peer. On
// a machine with several addresses that may be another one than the peer has asked: a
// connected client does not see such an answer, and firewalls drop it. IP_PKTINFO of
// ip(7) and IPV6_PKTINFO of RFC 3542, section 6, are the way out: the kernel says with
// each packet which address it came to, and takes the source of an answer.
package pktinfo

import (
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
)

// maxPeers is how many peers are remembered at the least, once that many have sent
// something: those that have sent last. Twice as many at the most, about 4 MB.
const maxPeers = 1 << 14

// A family is how a socket is asked, and told, about addresses.
type family int

const (
	none  family = iota // not at all: the kernel chooses
	inet                // a socket of AF_INET
	inet6               // one of AF_INET6; the addresses of IPv4 are mapped ones
)

// A local is an address of this machine.
type local struct {
	addr netip.Addr // unmapped
	// ifindex is the interface of a link-local address, without which such a one
	// says nothing; 0 for any other.
	ifindex uint32
}

// Sources remembers to which local address the last packet of each peer came. The zero
// value is ready to use, by several goroutines at once; all sockets that it is used with
// must be bound to the same address.
//
// The kernel is asked for local addresses at the first Read, and not before: a program
// that reads control messages itself, and never calls Read, gets those that it has asked
// for and no others.
type Sources struct {
	asked atomic.Pointer[asked]

	// mu guards the peers. Nothing is called with it held.
	mu sync.Mutex
	// A peer that sends is put into recent. When that is full it becomes earlier, and
	// what that held until then is forgotten.
	recent, earlier map[netip.AddrPort]local
}

// An asked is a socket of which the kernel was asked for local addresses.
type asked struct {
	conn   *net.UDPConn
	family family
	// answered is true once a packet has come with its local address.
	answered atomic.Bool
}

// Read is c.ReadFromUDPAddrPort, and remembers what the packet was sent to.
func (s *Sources) Read(c *net.UDPConn, b []byte) (n int, from netip.AddrPort, err error) {
	a := s.asked.Load()
	if a == nil || a.conn != c {
		a = s.ask(c)
	}
	if a.family == none {
		return c.ReadFromUDPAddrPort(b)
	}
	var oob [oobSize]byte
	n, oobn, _, from, err := c.ReadMsgUDPAddrPort(b, oob[:])
	if err != nil {
		return n, netip.AddrPort{}, err
	}
	to, ok := parse(a.family, oob[:oobn])
	if ok {
		if !a.answered.Load() {
			a.answered.Store(true)
		}
		s.remember(from, to)
	} else {
		s.unanswered(a)
	}
	return n, from, nil
}

// oobSize is room for the control messages of a packet: also for those that the program
// may have asked for besides, and that come before ours.
const oobSize = 256

func (s *Sources) ask(c *net.UDPConn) *asked {
	a := &asked{conn: c}
	if addr, ok := c.LocalAddr().(*net.UDPAddr); ok && addr.IP.IsUnspecified() {
		a.family = enable(c)
	}
	s.asked.Store(a)
	return a
}

// unanswered is called when a packet has come without its local address. The option
// belongs to the socket, not to the descriptor: another process that has the socket
// as well may have switched it off, and then it is switched on again. A kernel that has
// never answered is not asked again.
func (s *Sources) unanswered(a *asked) {
	if a.answered.Load() {
		s.asked.CompareAndSwap(a, nil)
	} else {
		s.asked.CompareAndSwap(a, &asked{conn: a.conn})
	}
}

func (s *Sources) remember(peer netip.AddrPort, to local) {
	peer = unmap(peer)
	s.mu.Lock()
	defer s.mu.Unlock()
	if !to.addr.IsValid() {
		delete(s.recent, peer)
		delete(s.earlier, peer)
		return
	}
	if has, ok := s.recent[peer]; ok && has == to {
		return
	}
	if len(s.recent) >= maxPeers {
		s.recent, s.earlier = s.earlier, s.recent
		clear(s.recent)
	}
	if s.recent == nil {
		s.recent = make(map[netip.AddrPort]local)
	}
	s.recent[peer] = to
}

// A Control is a control message that sets the source of a packet; nothing if the kernel
// is to choose.
type Control struct {
	b [controlSize]byte
	n int
}

// Bytes gives the message, for [net.UDPConn.WriteMsgUDP].
func (c *Control) Bytes() []byte { return c.b[:c.n] }

// To gives what makes the source of a packet to peer the address that peer has sent to.
// It reports whether that is known.
func (s *Sources) To(peer netip.AddrPort) (c Control, ok bool) {
	a := s.asked.Load()
	if a == nil || a.family == none {
		return c, false
	}
	peer = unmap(peer)
	s.mu.Lock()
	from, ok := s.recent[peer]
	if !ok {
		from, ok = s.earlier[peer]
	}
	s.mu.Unlock()
	return c, ok && c.put(a.family, from)
}

// Refused reports whether err, of a packet to peer whose source was set, may mean that
// the source is no address of this machine any more, or can't be the source of a packet.
// It is forgotten then; the packet can be sent again, from what the kernel chooses.
func (s *Sources) Refused(peer netip.AddrPort, err error) bool {
	if err == nil || !isBadSource(err) {
		return false
	}
	s.remember(peer, local{})
	return true
}

func unmap(ap netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
