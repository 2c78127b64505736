package grace

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
)

// sockets are all of a process, in the order in which they were asked for, and
// those that were inherited and that nobody has asked for yet.
type sockets struct {
	mu         sync.Mutex
	all        []*socket
	unclaimed  []inheritedSocket
	making     []int // indexes of those that were claimed, and are not in all yet
	open       bool  // gates open: this process is ready, and has not handed over
	inherited  bool  // some came from another process, which needs them until we are ready
	handedOver bool  // and not rolled back: what is closed may be needed again
	closed     bool
	ending     int  // how many paths are still to be removed, by endPath
	anyAddr    bool // a master's listeners are given whatever address is asked for

	changed chan struct{} // holds one when a gate's mode has changed, or somebody has left it
}

type inheritedSocket struct {
	entry
	index, fd int
}

func newSockets(m *manifest, first int) *sockets {
	s := &sockets{changed: make(chan struct{}, 1)}
	if m != nil {
		s.inherited = true
		for i, e := range m.Sockets {
			s.unclaimed = append(s.unclaimed, inheritedSocket{e, i, first + i})
		}
	}
	return s
}

// listen gives the inherited listener, or opens one.
func (s *sockets) listen(lc net.ListenConfig, network, addr string) (*listener, error) {
	var inner acceptor
	in, ok := s.claim(kindListener, network, addr)
	if ok {
		defer s.made(in)
		l, err := inheritListener(in.fd)
		if err != nil {
			return nil, fmt.Errorf("grace: inherited listener %s %s (descriptor %d): %w", network, addr, in.fd, err)
		}
		inner = l
	} else if network == systemdNetwork {
		return nil, s.noSuchName(addr)
	} else {
		l, err := openListener(lc, network, addr)
		if err != nil {
			return nil, err
		}
		in = inheritedSocket{entry: describe(kindListener, network, addr, l), index: -1}
		inner = l
	}
	in.askedFor(network, addr)
	sock := &socket{entry: in.entry, index: in.index, gate: newGate(inner.SetDeadline)}
	raw, err := inner.SyscallConn()
	if err == nil {
		err = sock.setRaw(raw)
	}
	if err != nil {
		inner.Close()
		return nil, fmt.Errorf("grace: listen %s %s: %w", network, addr, err)
	}
	l := &listener{inner: inner, addr: inner.Addr(), gate: sock.gate, sock: sock, socks: s}
	l.open = func(addr string) (acceptor, error) { return openListener(lc, network, addr) }
	sock.listener = l
	l.expired = &net.OpError{Op: "read", Net: l.addr.Network(), Source: l.addr, Err: os.ErrDeadlineExceeded}
	l.custom = lc.KeepAlive != 0 || lc.KeepAliveConfig != (net.KeepAliveConfig{})
	if err := s.add(sock); err != nil {
		l.inner.Close()
		return nil, err
	}
	return l, nil
}

// An acceptor is what *net.TCPListener and *net.UnixListener have in common.
type acceptor interface {
	net.Listener
	syscall.Conn
	deadliner
	File() (*os.File, error)
}

func openListener(lc net.ListenConfig, network, addr string) (acceptor, error) {
	switch network {
	case "tcp", "tcp4", "tcp6", "unix", "unixpacket":
	default:
		return nil, fmt.Errorf("grace: listen %s %s: %w; have tcp, tcp4, tcp6, unix, unixpacket; packets are ListenPacket's", network, addr, net.UnknownNetworkError(network))
	}
	open := func() (net.Listener, error) { return lc.Listen(context.Background(), network, addr) }
	var l net.Listener
	var err error
	if hasPath(network, addr) {
		l, err = openPath(addr, network, open)
	} else {
		l, err = open()
	}
	if err != nil {
		return nil, fmt.Errorf("grace: %w", err)
	}
	a, ok := l.(acceptor)
	if !ok {
		l.Close()
		return nil, fmt.Errorf("grace: listen %s %s: a %T can't be handed over", network, addr, l)
	}
	if ul, ok := l.(interface{ SetUnlinkOnClose(bool) }); ok { // a *net.UnixListener
		ul.SetUnlinkOnClose(false) // the path outlives this process
	}
	return a, nil
}

// listenPacket gives the inherited packet conn, or opens one.
func (s *sockets) listenPacket(lc net.ListenConfig, network, addr string) (net.PacketConn, error) {
	var inner net.PacketConn
	var err error
	in, ok := s.claim(kindPacket, network, addr)
	if ok {
		defer s.made(in)
		if inner, err = inheritPacket(in.fd); err != nil {
			return nil, fmt.Errorf("grace: inherited packet conn %s %s (descriptor %d): %w", network, addr, in.fd, err)
		}
	} else if network == systemdNetwork {
		return nil, s.noSuchName(addr)
	} else {
		if inner, err = openPacket(lc, network, addr); err != nil {
			return nil, err
		}
		in = inheritedSocket{entry: describe(kindPacket, network, addr, inner), index: -1}
	}
	in.askedFor(network, addr)
	g := newGate(inner.SetReadDeadline)
	sock := &socket{entry: in.entry, index: in.index, gate: g}
	p, raw, err := newPacketConn(inner, g, sock, s)
	if err == nil {
		sock.raw = raw
		err = s.add(sock)
	}
	if err != nil {
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

// add opens the gate of a socket that comes after Ready.
func (s *sockets) add(sock *socket) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return fmt.Errorf("grace: listen %s %s: %w", sock.Network, sock.Addr, ErrStopped)
	}
	s.all = append(s.all, sock)
	if sock.listener != nil {
		sock.gate.watch(s.check)
	}
	if s.open && sock.gate != nil {
		sock.gate.set(gateOpen)
	}
	return nil
}

// remove forgets a socket that is about to be closed. Its path goes too, if it
// is ours alone: not while another process still serves on it.
func (s *sockets) remove(sock *socket) {
	if file := s.forget(sock); file.path != "" {
		file.remove()
	}
}

// forget gives the file to be removed.
func (s *sockets) forget(sock *socket) (file socketFile) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.Index(s.all, sock)
	if i < 0 {
		return file
	}
	s.all = append(s.all[:i:i], s.all[i+1:]...)
	if !sock.yielded && (sock.index < 0 || !s.inherited) {
		file = sock.socketFile()
	}
	return file
}

// keep says whether a socket that the program closes may be needed again.
func (s *sockets) keep(sock *socket) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.handedOver && !s.closed
}

// own says that the sockets are this process's alone, or that they are not.
func (s *sockets) own(alone bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.inherited = !alone
}

// snapshot is what goes into a manifest: every socket that is still open.
func (s *sockets) snapshot() []*socket {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]*socket(nil), s.all...)
}

// claims are the sockets that this process took of the manifest that it got.
func (s *sockets) claims() (c claims) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sock := range s.all {
		if sock.index >= 0 {
			proto := ""
			if sock.listener != nil {
				proto = sock.listener.protocol()
			}
			c.add(sock.index, proto)
		}
	}
	for _, i := range s.making {
		if !slices.Contains(c.Sockets, i) {
			c.add(i, "")
		}
	}
	return c
}

// seal gives the claims, after which nothing is claimed any more, and what nobody
// has asked for: that is old's.
func (s *sockets) seal() (c claims, dropped []inheritedSocket) {
	s.mu.Lock()
	dropped, s.unclaimed = s.unclaimed, nil
	s.mu.Unlock()
	return s.claims(), dropped
}

// taker is the listener that takes connections of the socket with this index in
// the old process's manifest; nil if there is none.
func (s *sockets) taker(index int) *listener {
	for _, sock := range s.snapshot() {
		if l := sock.listener; l != nil && sock.index == index && l.protocol() != "" && l.gate.isOpen() {
			return l
		}
	}
	return nil
}

// openGates begins to accept, on every socket, or begins again after a
// hand-over that was rolled back. It waits for nothing: what can't be accepted on
// before it was opened anew is returned, and reopen is to be called for it.
func (s *sockets) openGates() (shut []*listener) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open, s.handedOver = true, false
	for _, sock := range s.all {
		if sock.gate == nil {
			continue
		}
		if l := sock.listener; l != nil && l.isShut() {
			shut = append(shut, l)
			continue
		}
		sock.gate.set(gateOpen)
		if sock.listener != nil && (sock.index >= 0 || sock.yielded) {
			sayWho(sock)
		}
		sock.yielded = false
	}
	return shut
}

// hold parks and holds listeners that this process does not accept on any more.
// False if it does: a hand-over was rolled back.
func (s *sockets) hold(ls []*listener) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open {
		return false
	}
	for _, l := range ls {
		l.gate.swap(gateShut, gateParked)
		l.hold(true)
	}
	return true
}

// closeInherited closes this process's copies.
func closeInherited(dropped []inheritedSocket) {
	for _, in := range dropped {
		closeAll([]int{in.fd})
	}
}

// names are for the log: the first ten.
func names(dropped []inheritedSocket) string {
	var b strings.Builder
	for i, in := range dropped {
		if i == 10 {
			fmt.Fprintf(&b, " and %d more", len(dropped)-i)
			break
		}
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprint(&b, strings.TrimSpace(cmp.Or(in.Network, string(in.Kind))+" "+cmp.Or(in.Bound, in.Addr)))
	}
	return b.String()
}

// yield stops accepting on those of the handed sockets that new has claimed.
// The others stay open: this process alone serves them until it drains.
func (s *sockets) yield(handed []*socket, claimed []int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open, s.handedOver = false, true
	for _, i := range claimed {
		if i >= 0 && i < len(handed) {
			handed[i].yielded = true
			handed[i].shutGate()
		}
	}
}

// endAccept ends accepting for good. What waits in the queue of a socket that
// no other process has is still accepted; its path is removed before, so that
// nobody new comes.
func (s *sockets) endAccept() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open = false // a server that begins only now opens nothing again
	for _, sock := range s.all {
		switch {
		case sock.gate == nil:
		case sock.listener != nil && sock.listener.isShut():
		case sock.Master || sock.yielded || s.inherited && sock.index >= 0: // another process's
			sock.shutGate()
		case sock.Path == "":
			sock.gate.set(gateFinishing)
		default:
			s.ending++
			go s.endPath(sock, sock.socketFile())
		}
	}
}

// drain waits until the queues that no other process has are accepted, whoever
// calls Accept. It makes sockets a drainer.
func (s *sockets) drain(d *drain) drainReport {
	for {
		left := s.isEnding()
		for _, sock := range s.snapshot() {
			left = sock.listener != nil && !sock.listener.finished() || left
		}
		if !left {
			return drainReport{}
		}
		select {
		case <-s.changed:
		case <-d.cut:
			return drainReport{}
		case <-d.ctx.Done():
			return drainReport{}
		}
	}
}

func (s *sockets) check() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// offer and shutdown make it a drainer: connections are the servers', and close
// ends the listeners before.
func (s *sockets) offer(*mover) {}
func (s *sockets) resume()      {}
func (s *sockets) shutdown()    {}

// letGo closes this process's copies of the listeners that new has taken: it
// will not accept on them again, and while it holds them clients would still
// connect to a service that has ended.
func (s *sockets) letGo() {
	for _, sock := range s.snapshot() {
		if sock.yielded && sock.listener != nil {
			sock.listener.letGo()
		}
	}
}

// close ends all Accepts and all reads of packets. The packet conns themselves
// stay open, for answers.
func (s *sockets) close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	for _, sock := range s.snapshot() {
		switch {
		case sock.listener != nil:
			sock.listener.end()
		case sock.gate != nil:
			sock.gate.set(gateClosed)
		}
	}
	_, dropped := s.seal()
	closeInherited(dropped)
}

// listeners are those that listen on addr: one, or several with SO_REUSEPORT.
func (s *sockets) listeners(addr net.Addr) []*listener {
	var found []*listener
	for _, sock := range s.snapshot() {
		if l := sock.listener; l != nil && l.addr.Network() == addr.Network() && l.addr.String() == addr.String() {
			found = append(found, l)
		}
	}
	return found
}
