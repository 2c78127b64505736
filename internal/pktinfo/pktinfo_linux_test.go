package pktinfo

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/julofinance/grace/v3/internal/testing/netns"
	"github.com/julofinance/grace/v3/internal/testing/wait"
)

func listen(t testing.TB, network, addr string) *net.UDPConn {
	t.Helper()
	c, err := net.ListenPacket(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(wait.Limit))
	return c.(*net.UDPConn)
}

// dial gives a client that sees only what comes from the address that it sends to.
func dial(t testing.TB, server *net.UDPConn, host string) *net.UDPConn {
	t.Helper()
	port := server.LocalAddr().(*net.UDPAddr).Port
	var d net.Dialer
	switch addr := netip.MustParseAddr(host); { // the kernel would choose the client's own address
	case addr.IsLinkLocalUnicast():
		d.LocalAddr = &net.UDPAddr{IP: net.ParseIP("fe80::1"), Zone: "lo"}
	case addr.Is6() && !addr.IsLoopback():
		d.LocalAddr = &net.UDPAddr{IP: net.ParseIP("2001:db8::1")}
	}
	c, err := d.Dial("udp", net.JoinHostPort(host, fmt.Sprint(port)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(wait.Limit))
	return c.(*net.UDPConn)
}

func send(t testing.TB, c *net.UDPConn, text string) {
	t.Helper()
	if _, err := c.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
}

// read reads one packet of server by s, and gives its peer.
func read(t testing.TB, s *Sources, server *net.UDPConn) netip.AddrPort {
	t.Helper()
	b := make([]byte, 100)
	_, peer, err := s.Read(server, b)
	if err != nil {
		t.Fatal(err)
	}
	return peer
}

// answer sends text to peer, and reports whether the source was known.
func answer(t testing.TB, s *Sources, server *net.UDPConn, peer netip.AddrPort, text string) bool {
	t.Helper()
	c, ok := s.To(peer)
	if _, _, err := server.WriteMsgUDPAddrPort([]byte(text), c.Bytes(), peer); err != nil {
		t.Fatal(err)
	}
	return ok
}

func wantAnswer(t testing.TB, c *net.UDPConn, want string) {
	t.Helper()
	b := make([]byte, 100)
	n, err := c.Read(b)
	if err != nil {
		t.Fatalf("%s asked %s: %v", c.LocalAddr(), c.RemoteAddr(), err)
	}
	if got := string(b[:n]); got != want {
		t.Errorf("%s asked %s: answered %q, want %q", c.LocalAddr(), c.RemoteAddr(), got, want)
	}
}

// TestAnswerFromTheAddressThatWasAsked: to several addresses at once, over sockets of
// each family, and with what has waited before the first Read.
func TestAnswerFromTheAddressThatWasAsked(t *testing.T) {
	four, six := []string{"127.0.0.1", "127.0.0.2", "127.1.2.3"}, []string{"::1", "2001:db8::1", "2001:db8::2", "fe80::1%lo", "fe80::2%lo"}
	if !netns.Enter(t, "2001:db8::1/64", "2001:db8::2/64", "fe80::1/64", "fe80::2/64") {
		return
	}
	for _, at := range []struct {
		network, addr string
		hosts         []string
	}{
		{"udp4", "0.0.0.0:0", four},
		{"udp6", "[::]:0", six},
		{"udp", "[::]:0", append(four, six...)},
	} {
		t.Run(at.network, func(t *testing.T) {
			server := listen(t, at.network, at.addr)
			var s Sources
			clients := map[netip.AddrPort]*net.UDPConn{}
			for _, host := range at.hosts {
				c := dial(t, server, host)
				send(t, c, "hello")
				addr := c.LocalAddr().(*net.UDPAddr).AddrPort()
				clients[unmap(addr)] = c
			}
			for range 2 { // what has waited, and what has not
				var peers []netip.AddrPort
				for range clients {
					peers = append(peers, read(t, &s, server))
				}
				for _, peer := range peers {
					c := clients[unmap(peer)]
					if c == nil {
						t.Fatalf("a packet of %s, which is no client", peer)
					}
					text := "to " + c.LocalAddr().String()
					if !answer(t, &s, server, peer, text) {
						t.Errorf("it is not known what %s has asked", peer)
					}
					wantAnswer(t, c, text)
					send(t, c, "hello again")
				}
			}
		})
	}
}

// TestPeerThatAsksAnotherAddress is answered from the last one.
func TestPeerThatAsksAnotherAddress(t *testing.T) {
	server, peer := listen(t, "udp4", "0.0.0.0:0"), listen(t, "udp4", "127.0.0.1:0")
	var s Sources
	for _, host := range []string{"127.0.0.1", "127.0.0.2", "127.0.0.1"} {
		to := netip.AddrPortFrom(netip.MustParseAddr(host), server.LocalAddr().(*net.UDPAddr).AddrPort().Port())
		if _, err := peer.WriteToUDPAddrPort([]byte("hello"), to); err != nil {
			t.Fatal(err)
		}
		answer(t, &s, server, read(t, &s, server), "answer")
		_, from, err := peer.ReadFromUDPAddrPort(make([]byte, 100))
		if err != nil || from != to {
			t.Errorf("the answer comes from %v, %v; want %v", from, err, to)
		}
	}
}

// pktinfo is what the kernel is asked for on c.
func pktinfo(t *testing.T, c *net.UDPConn) (on bool) {
	t.Helper()
	setOption(t, c, func(fd int) error {
		v, err := unix.GetsockoptInt(fd, unix.SOL_IP, unix.IP_PKTINFO)
		on = v != 0
		return err
	})
	return on
}

func setOption(t *testing.T, c *net.UDPConn, f func(fd int) error) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if e := raw.Control(func(fd uintptr) { err = f(int(fd)) }); e != nil || err != nil {
		t.Fatal(e, err)
	}
}

// TestKernelIsNotAskedInVain: a socket of one address needs nothing, and a program that
// reads control messages itself sees none that it has not asked for.
func TestKernelIsNotAskedInVain(t *testing.T) {
	one, all := listen(t, "udp4", "127.0.0.2:0"), listen(t, "udp4", "0.0.0.0:0")
	var ofOne, ofAll Sources
	c := dial(t, one, "127.0.0.2")
	send(t, c, "hello")
	if peer := read(t, &ofOne, one); answer(t, &ofOne, one, peer, "hi") {
		t.Errorf("the source of an answer to %s is set, on a socket that has only one", peer)
	}
	wantAnswer(t, c, "hi")
	if pktinfo(t, one) {
		t.Error("the kernel is asked, for a socket of one address")
	}
	if _, ok := ofAll.To(netip.MustParseAddrPort("127.0.0.1:1")); ok || pktinfo(t, all) {
		t.Errorf("before the first Read: source known %v, kernel asked %v", ok, pktinfo(t, all))
	}
}

// TestOptionThatAnotherProcessHasSwitchedOff is switched on again.
func TestOptionThatAnotherProcessHasSwitchedOff(t *testing.T) {
	server := listen(t, "udp4", "0.0.0.0:0")
	c := dial(t, server, "127.0.0.2")
	var s Sources
	for range 2 {
		send(t, c, "hello")
		if peer := read(t, &s, server); !answer(t, &s, server, peer, "hi") {
			t.Fatal("the address that was asked is not known")
		}
		wantAnswer(t, c, "hi")
		setOption(t, server, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_PKTINFO, 0) })
		send(t, c, "without")
		read(t, &s, server)
	}
}

// TestOptionsOfTheProgram: control messages that the program has asked for are no
// obstacle, whatever comes first.
func TestOptionsOfTheProgram(t *testing.T) {
	server := listen(t, "udp", "[::]:0")
	setOption(t, server, func(fd int) error {
		for _, o := range [][3]int{
			{unix.SOL_SOCKET, unix.SO_TIMESTAMPING, unix.SOF_TIMESTAMPING_RX_SOFTWARE | unix.SOF_TIMESTAMPING_SOFTWARE},
			{unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1},
			{unix.SOL_SOCKET, unix.SO_RXQ_OVFL, 1},
			{unix.SOL_IP, unix.IP_PKTINFO, 1},
			{unix.SOL_IP, unix.IP_RECVTOS, 1},
			{unix.SOL_IPV6, unix.IPV6_RECVTCLASS, 1},
			{unix.SOL_IPV6, unix.IPV6_RECVHOPLIMIT, 1},
		} {
			if err := unix.SetsockoptInt(fd, o[0], o[1], o[2]); err != nil {
				return err
			}
		}
		return nil
	})
	var s Sources
	for _, host := range []string{"127.0.0.2", "::1"} {
		c := dial(t, server, host)
		send(t, c, "hello")
		if peer := read(t, &s, server); !answer(t, &s, server, peer, "hi") {
			t.Errorf("what %s has asked is not known", peer)
		}
		wantAnswer(t, c, "hi")
	}
}

// TestAddressThatIsGone: the kernel refuses a source that is no address of the machine
// any more, and chooses one from then on.
func TestAddressThatIsGone(t *testing.T) {
	for _, at := range []struct{ network, addr, host, gone string }{
		{"udp4", "0.0.0.0:0", "127.0.0.1", "192.0.2.1"},
		{"udp", "[::]:0", "127.0.0.1", "192.0.2.1"},
		{"udp6", "[::]:0", "::1", "2001:db8:ffff::1"},
	} {
		server := listen(t, at.network, at.addr)
		c := dial(t, server, at.host)
		send(t, c, "hello")
		var s Sources
		peer := read(t, &s, server)
		s.remember(peer, local{addr: netip.MustParseAddr(at.gone)})
		control, ok := s.To(peer)
		_, _, err := server.WriteMsgUDPAddrPort([]byte("no"), control.Bytes(), peer)
		if !ok || !s.Refused(peer, err) {
			t.Fatalf("%s, %s: known %v, sent with %v; want an error", at.network, at.gone, ok, err)
		}
		if answer(t, &s, server, peer, "hi") {
			t.Errorf("%s: a source that was refused is remembered", at.network)
		}
		wantAnswer(t, c, "hi")
	}
	var s Sources
	if peer := netip.MustParseAddrPort("127.0.0.1:1"); s.Refused(peer, nil) || s.Refused(peer, unix.EPERM) {
		t.Error("what is not the source's fault is taken for that")
	}
}

// TestPeersAreBounded: those that have sent last are known, and no more than that.
func TestPeersAreBounded(t *testing.T) {
	var s Sources
	s.asked.Store(&asked{family: inet6})
	peer := func(i int) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 53)
	}
	to := local{addr: netip.MustParseAddr("127.0.0.2")}
	const all = 5*maxPeers + maxPeers/2
	for i := range all {
		s.remember(peer(i), to)
		if i%7 == 0 {
			s.remember(peer(0), to) // one that goes on
		}
	}
	if n := len(s.recent) + len(s.earlier); n > 2*maxPeers {
		t.Errorf("%d peers are remembered, want %d at the most", n, 2*maxPeers)
	}
	for i := all - maxPeers; i < all; i++ {
		if _, ok := s.To(peer(i)); !ok {
			t.Fatalf("peer %d of %d is forgotten", i, all)
		}
	}
	if _, ok := s.To(peer(0)); !ok {
		t.Error("a peer that goes on sending is forgotten")
	}
	if _, ok := s.To(peer(1)); ok {
		t.Error("the first peer is remembered still")
	}
}

// TestNoAllocation: packets cost none.
func TestNoAllocation(t *testing.T) {
	server := listen(t, "udp", "[::]:0")
	c := dial(t, server, "127.0.0.1") // where the kernel's choice is right
	var s Sources
	b := make([]byte, 100)
	n := testing.AllocsPerRun(100, func() {
		send(t, c, "hello")
		_, peer, err := s.Read(server, b)
		if err != nil {
			t.Fatal(err)
		}
		answer(t, &s, server, peer, "hi")
		if _, err := c.Read(b); err != nil {
			t.Fatal(err)
		}
	})
	plain := testing.AllocsPerRun(100, func() {
		send(t, c, "hello")
		_, peer, err := server.ReadFromUDPAddrPort(b)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := server.WriteToUDPAddrPort([]byte("hi"), peer); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(b); err != nil {
			t.Fatal(err)
		}
	})
	if n > plain {
		t.Errorf("%v allocations, want %v as without", n, plain)
	}
}

func TestParse(t *testing.T) {
	info4 := func(specDst, dst string) []byte {
		data := make([]byte, unix.SizeofInet4Pktinfo)
		copy(data[4:], netip.MustParseAddr(specDst).AsSlice())
		copy(data[8:], netip.MustParseAddr(dst).AsSlice())
		return message(unix.SOL_IP, unix.IP_PKTINFO, data)
	}
	info6 := func(dst string) []byte {
		data := make([]byte, unix.SizeofInet6Pktinfo)
		copy(data, netip.AddrFrom16(netip.MustParseAddr(dst).As16()).AsSlice())
		data[16], data[19] = 7, 7
		return message(unix.SOL_IPV6, unix.IPV6_PKTINFO, data)
	}
	other := message(unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, make([]byte, 16))
	for _, c := range []struct {
		name   string
		family family
		oob    []byte
		addr   string // "" : none that may be the source
		index  bool
		ok     bool
	}{
		{"nothing", inet, nil, "", false, false},
		{"another", inet, other, "", false, false},
		{"cut off", inet, info4("10.0.0.1", "10.0.0.1")[:unix.CmsgLen(4)], "", false, false},
		{"unicast", inet, info4("10.0.0.1", "10.0.0.1"), "10.0.0.1", false, true},
		{"after another", inet, append(other, info4("10.0.0.1", "10.0.0.1")...), "10.0.0.1", false, true},
		{"from before the kernel was asked", inet, info4("0.0.0.0", "10.0.0.1"), "10.0.0.1", false, true},
		{"broadcast", inet, info4("10.0.0.1", "10.0.0.255"), "10.0.0.1", false, true},
		{"multicast", inet, info4("10.0.0.1", "224.0.0.251"), "", false, true},
		{"of the other family", inet, info6("2001:db8::1"), "", false, false},
		{"IPv6", inet6, info6("2001:db8::1"), "2001:db8::1", false, true},
		{"mapped", inet6, info6("::ffff:10.0.0.1"), "10.0.0.1", false, true},
		{"link-local", inet6, info6("fe80::1"), "fe80::1", true, true},
		{"IPv6 multicast", inet6, info6("ff02::fb"), "", false, true},
		{"IPv4 beside IPv6", inet6, append(info4("10.0.0.1", "10.0.0.1"), info6("::ffff:10.0.0.2")...), "10.0.0.2", false, true},
	} {
		to, ok := parse(c.family, c.oob)
		addr := ""
		if to.addr.IsValid() {
			addr = to.addr.String()
		}
		if ok != c.ok || addr != c.addr || (to.ifindex != 0) != c.index {
			t.Errorf("%s: %q, interface %d, %v; want %q, interface %v, %v", c.name, addr, to.ifindex, ok, c.addr, c.index, c.ok)
		}
	}
}

// message is a control message as the kernel gives it.
func message(level, kind uint32, data []byte) []byte {
	var c Control
	c.header(level, kind, len(data))
	b := make([]byte, unix.CmsgSpace(len(data)))
	copy(b, c.b[:unix.SizeofCmsghdr])
	copy(b[unix.CmsgLen(0):], data)
	return b
}
