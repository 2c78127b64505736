package grace

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"

	"github.com/julofinance/grace/v3/internal/fd"
	"github.com/julofinance/grace/v3/internal/gate"
	"github.com/julofinance/grace/v3/internal/manifest"
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
	standingBy bool  // handed over, and nothing is drained yet: the program closes what it does not want
	closed     bool
	ending     int  // how many paths are still to be removed, by endPath
	anyAddr    bool // a master's listeners are given whatever address is asked for

	mending     context.Context // of all that is being mended, see mend.go; nil: nothing is
	stopMending context.CancelFunc
	log         *slog.Logger

	changed chan struct{} // holds one when a gate's mode has changed, or somebody has left it
}

type inheritedSocket struct {
	manifest.Entry
	index, fd int
	anew      bool // Listen binds its path anew: this one is in nobody's way
}

func newSockets(m *manifest.Manifest, first int) *sockets {
	s := &sockets{changed: make(chan struct{}, 1), log: slog.New(slog.DiscardHandler)}
	if m != nil {
		s.inherited = true
		for i, e := range m.Sockets {
			s.unclaimed = append(s.unclaimed, inheritedSocket{Entry: e, index: i, fd: first + i})
		}
	}
	return s
}

// add opens the gate of a socket that comes after Ready.
func (s *sockets) add(sock *socket) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return fmt.Errorf("grace: %s: %w", sock.asked(), ErrStopped)
	}
	s.all = append(s.all, sock)
	if sock.listener != nil {
		sock.gate.Watch(s.check)
	}
	switch {
	case !s.open || sock.gate == nil:
	case sock.listener != nil:
		if err := sock.listener.start(); err != nil {
			s.all = s.all[:len(s.all)-1] // it is handed to nobody
			return fmt.Errorf("grace: listen %s %s: %w", sock.Network, sock.Addr, err)
		}
	default:
		sock.gate.Set(gate.Open)
	}
	return nil
}

// asked is what the program wanted, for errors.
func (s *socket) asked() string {
	switch s.Kind {
	case manifest.File, manifest.Conn:
		return fmt.Sprintf("add %s %q", s.Kind, s.Addr)
	case manifest.Packet:
		return fmt.Sprintf("listen packet %s %s", s.Network, s.Addr)
	}
	return fmt.Sprintf("listen %s %s", s.Network, s.Addr)
}

// remove forgets a socket that is about to be closed. Its path goes too, if it
// is ours alone: not while another process still serves on it.
func (s *sockets) remove(sock *socket) {
	if s.forget(sock) {
		sock.unlink()
	}
}

// forget says whether the path is to be removed.
func (s *sockets) forget(sock *socket) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.Index(s.all, sock)
	if i < 0 {
		return false
	}
	s.all = append(s.all[:i:i], s.all[i+1:]...)
	return !sock.yielded && (sock.index < 0 || !s.inherited)
}

// keep says whether a socket that the program closes may be needed again, by who
// takes it over, or here.
func (s *sockets) keep(sock *socket) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.handedOver || s.closed {
		return false
	}
	if s.standingBy && sock != nil && sock.listener != nil {
		if !sock.yielded { // nobody else has it
			return false
		}
		sock.listener.unwanted = true
	}
	return true
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

// toHandOver is snapshot for a manifest.
func (s *sockets) toHandOver() []*socket {
	all := s.snapshot()
	for _, sock := range all {
		sock.shared.Store(true)
		sock.shutBefore.Store(sock.whole != nil && sock.listener == nil && sock.isShutDown())
		sock.look()
	}
	return all
}

// claims are the sockets that this process took of the manifest that it got.
func (s *sockets) claims() (c manifest.Claims) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sock := range s.all {
		if sock.index >= 0 {
			proto := ""
			if sock.listener != nil {
				proto = sock.listener.protocol()
			}
			c.Add(sock.index, proto)
		}
	}
	for _, i := range s.making {
		if !slices.Contains(c.Sockets, i) {
			c.Add(i, "")
		}
	}
	return c
}

// seal gives the claims, after which nothing is claimed any more, and what nobody
// has asked for: that is old's.
func (s *sockets) seal() (c manifest.Claims, dropped []inheritedSocket) {
	s.mu.Lock()
	dropped, s.unclaimed = s.unclaimed, nil
	s.mu.Unlock()
	return s.claims(), dropped
}

// taker is the listener that takes connections of the socket with this index in
// the old process's manifest; nil if there is none.
func (s *sockets) taker(index int) *listener {
	for _, sock := range s.snapshot() {
		if l := sock.listener; l != nil && sock.index == index && l.protocol() != "" && l.gate.IsOpen() {
			return l
		}
	}
	return nil
}

// openGates begins to accept, on every socket. If one of them can't listen it does
// so on none: what others accept would be lost with this process, and the old one
// serves on.
func (s *sockets) openGates() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, sock := range s.all {
		if sock.listener == nil {
			continue
		}
		if err := sock.listener.listenLate(); err != nil {
			errs = append(errs, fmt.Errorf("grace: listen %s %s: %w", sock.Network, sock.Addr, err))
		}
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	s.open, s.handedOver, s.inherited = true, false, false
	for _, sock := range s.all {
		if sock.gate == nil {
			continue
		}
		sock.gate.Set(gate.Open)
		if sock.listener != nil && sock.index >= 0 {
			sayWho(sock)
		}
	}
	return nil
}

// reopenGates begins again, after a hand-over that was rolled back.
func (s *sockets) reopenGates() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open, s.handedOver, s.standingBy = true, false, false
	for _, sock := range s.all {
		sock.last.Store(false)
		switch {
		case sock.listener != nil && sock.listener.unwanted:
			go sock.listener.drop()
		case sock.listener != nil:
			sock.listener.restart()
			if sock.index >= 0 || sock.yielded {
				sayWho(sock)
			}
		case sock.gate != nil:
			sock.gate.Set(gate.Open)
			s.mend(sock)
		}
		sock.yielded = false
	}
}

// unpark lets l accept again that was closed while the process drained, if the
// drain was called off meanwhile.
func (s *sockets) unpark(l *listener) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case !s.open || !l.gate.IsParked():
	case l.unwanted:
		l.gate.Set(gate.Shut) // for what has come back from a move, and for no other
	default:
		l.restart()
	}
}

// hold parks and holds listeners that this process does not accept on any more,
// and closes doors before others. False if it does: a hand-over was rolled back.
func (s *sockets) hold(ls []*listener, doors []*door) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open {
		return false
	}
	for _, l := range ls {
		l.gate.Swap(gate.Shut, gate.Parked)
		l.hold(true)
	}
	for _, d := range doors {
		d.shut()
	}
	return true
}

// closeInherited closes this process's copies.
func closeInherited(dropped []inheritedSocket) {
	for _, in := range dropped {
		fd.CloseAll([]int{in.fd})
	}
}

// unused are those of dropped in whose place this process has bound none.
func unused(dropped []inheritedSocket) []inheritedSocket {
	return slices.DeleteFunc(slices.Clone(dropped), func(in inheritedSocket) bool { return in.anew })
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
	s.open, s.handedOver, s.standingBy = false, true, true
	s.endMending() // a roll back begins it again
	for _, i := range claimed {
		if i >= 0 && i < len(handed) {
			handed[i].yielded = true
			handed[i].shutGate()
		}
	}
}

// leaveEnd leaves the end of the handed sockets to new, which has claimed them, and
// may accept at any moment, until it hears that the service ends.
func (s *sockets) leaveEnd(handed []*socket, claimed []int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, i := range claimed {
		if i >= 0 && i < len(handed) {
			handed[i].theirs = true
		}
	}
}

// endAccept ends accepting, for good unless the upgrade is rolled back. What waits
// in the queue of a socket that no other process serves on is still accepted; its
// path is removed before, so that nobody new comes, and then it ends for all that
// have a copy.
func (s *sockets) endAccept() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open, s.standingBy = false, false // a server that begins only now opens nothing again
	s.endMending()
	for _, sock := range s.all {
		if sock.listener != nil {
			sock.listener.mayReturn.Store(s.handedOver)
		}
		switch {
		case sock.gate == nil:
		case sock.listener != nil && (sock.listener.isShut() || sock.listener.unwanted):
		case sock.Master || sock.yielded || s.inherited && sock.index >= 0: // another process's
			sock.shutGate()
		case sock.Path == "":
			sock.last.Store(!sock.theirs)
			sock.gate.Set(gate.Finishing)
		default:
			sock.last.Store(!sock.theirs)
			s.ending++
			go s.endPath(sock, s.handedOver)
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
	s.endMending()
	s.mu.Unlock()
	for _, sock := range s.snapshot() {
		switch {
		case sock.listener != nil:
			sock.listener.end()
		case sock.gate != nil:
			sock.gate.Set(gate.Closed)
		}
		sock.forget()
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
