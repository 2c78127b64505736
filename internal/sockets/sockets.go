package sockets

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"

	"github.com/julofinance/grace/v3/internal/gate"
	"github.com/julofinance/grace/v3/internal/manifest"
)

// A Set is all sockets of a process, in the order in which they were asked for,
// and those that were inherited and that the program has not asked for yet.
type Set struct {
	mu         sync.Mutex // guards the following, but Log and changed, which are set before
	all        []*Socket
	unclaimed  []Inherited
	making     []int // indexes of those that were claimed, and are not in all yet
	open       bool  // the gates are open: this process is ready, and has not handed over
	inherited  bool  // some came from another process, which needs them until we are ready
	handedOver bool  // and not rolled back: what is closed may be needed again
	standingBy bool  // handed over, and nothing is drained yet: the program closes what it does not want
	closed     bool
	ending     int  // how many paths are still to be removed, by endPath
	anyAddr    bool // a master's listeners are given whatever address is asked for

	mending     context.Context // of all that is being mended, see mend.go; nil: nothing is
	stopMending context.CancelFunc
	Log         *slog.Logger

	changed chan struct{} // holds one when a gate's mode has changed, or a call has left it
}

func New(m *manifest.Manifest, first int) *Set {
	s := &Set{changed: make(chan struct{}, 1), Log: slog.New(slog.DiscardHandler)}
	if m != nil {
		s.inherited = true
		for i, e := range m.Sockets {
			s.unclaimed = append(s.unclaimed, Inherited{Entry: e, Index: i, FD: first + i})
		}
	}
	return s
}

// Add adds a socket; if it comes after Ready, its gate is opened.
func (s *Set) Add(sock *Socket) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return fmt.Errorf("grace: %s: %w", sock.asked(), ErrStopped)
	}
	s.all = append(s.all, sock)
	if sock.Listener != nil {
		sock.gate.Watch(s.check)
	}
	switch {
	case !s.open || sock.gate == nil:
	case sock.Listener != nil:
		if err := sock.Listener.start(); err != nil {
			s.all = s.all[:len(s.all)-1] // it is not handed over
			return fmt.Errorf("grace: listen %s %s: %w", sock.Network, sock.Addr, err)
		}
	default:
		sock.gate.Set(gate.Open)
	}
	return nil
}

// asked is what the program wanted, for errors.
func (s *Socket) asked() string {
	switch s.Kind {
	case manifest.File, manifest.Conn:
		return fmt.Sprintf("add %s %q", s.Kind, s.Addr)
	case manifest.Packet:
		return fmt.Sprintf("listen packet %s %s", s.Network, s.Addr)
	}
	return fmt.Sprintf("listen %s %s", s.Network, s.Addr)
}

// Remove forgets a socket that is about to be closed. Its path is removed too, if
// it is this process's alone: not while another process still serves on it.
func (s *Set) Remove(sock *Socket) {
	if s.forget(sock) {
		sock.unlink()
	}
}

// forget reports whether the path is to be removed.
func (s *Set) forget(sock *Socket) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.Index(s.all, sock)
	if i < 0 {
		return false
	}
	s.all = append(s.all[:i:i], s.all[i+1:]...)
	return !sock.yielded && (sock.Index < 0 || !s.inherited)
}

// Keep reports whether a socket that the program closes may be needed again, here
// or by the process that takes it over.
func (s *Set) Keep(sock *Socket) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.handedOver || s.closed {
		return false
	}
	if s.standingBy && sock != nil && sock.Listener != nil {
		if !sock.yielded { // no other process has it
			return false
		}
		sock.Listener.unwanted = true
	}
	return true
}

// Own sets whether the sockets are this process's alone.
func (s *Set) Own(alone bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.inherited = !alone
}

// Snapshot returns every socket that is still open.
func (s *Set) Snapshot() []*Socket {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]*Socket(nil), s.all...)
}

// ToHandOver is Snapshot for a manifest: it notes what is needed to mend them
// later.
func (s *Set) ToHandOver() []*Socket {
	all := s.Snapshot()
	for _, sock := range all {
		sock.shared.Store(true)
		sock.shutBefore.Store(sock.whole != nil && sock.Listener == nil && sock.isShutDown())
		sock.look()
	}
	return all
}

// Claims returns the sockets that this process took of the manifest that it got.
func (s *Set) Claims() (c manifest.Claims) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sock := range s.all {
		if sock.Index >= 0 {
			proto := ""
			if sock.Listener != nil {
				proto = sock.Listener.Protocol()
			}
			c.Add(sock.Index, proto)
		}
	}
	for _, i := range s.making {
		if !slices.Contains(c.Sockets, i) {
			c.Add(i, "")
		}
	}
	return c
}

// Seal returns the claims, after which nothing is claimed any more, and the
// sockets that the program has not asked for: those are the old process's.
func (s *Set) Seal() (c manifest.Claims, dropped []Inherited) {
	s.mu.Lock()
	dropped, s.unclaimed = s.unclaimed, nil
	s.mu.Unlock()
	return s.Claims(), dropped
}

// Taker returns the listener that takes connections of the socket with this index
// in the old process's manifest; nil if there is none.
func (s *Set) Taker(index int) *Listener {
	for _, sock := range s.Snapshot() {
		if l := sock.Listener; l != nil && sock.Index == index && l.Protocol() != "" && l.Gate.IsOpen() {
			return l
		}
	}
	return nil
}

// OpenGates begins to accept, on every socket. If one of them can't listen, it
// opens none: what the others accept would be lost with this process, and the old
// process serves on.
func (s *Set) OpenGates() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, sock := range s.all {
		if sock.Listener == nil {
			continue
		}
		if err := sock.Listener.listenLate(); err != nil {
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
		if sock.Listener != nil && sock.Index >= 0 {
			sayWho(sock)
		}
	}
	return nil
}

// ReopenGates begins to accept again, after a hand-over that was rolled back.
func (s *Set) ReopenGates() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open, s.handedOver, s.standingBy = true, false, false
	for _, sock := range s.all {
		sock.last.Store(false)
		if sock.Listener != nil {
			sock.Listener.Live.release(nil, false) // else what is accepted before Resume is told to go
			sock.Listener.free()
		}
		switch {
		case sock.Listener != nil && sock.Listener.unwanted:
			go sock.Listener.drop()
		case sock.Listener != nil:
			sock.Listener.restart()
			if sock.Index >= 0 || sock.yielded {
				sayWho(sock)
			}
		case sock.gate != nil:
			sock.gate.Set(gate.Open)
			s.mend(sock)
		}
		sock.yielded = false
	}
}

// Unpark lets l, which was closed while the process drained, accept again, if the
// drain was called off meanwhile. Where the gates are still shut, as long as this process
// must first have again what it has lent, Accept waits for ReopenGates: an error would end
// the server that calls it.
func (s *Set) Unpark(l *Listener) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.Gate.IsParked() && (s.open || s.handedOver || l.isUnfinished()) {
		l.unpark()
	}
}

// Accepts reports whether this process accepts on l.
func (s *Set) Accepts(l *Listener) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open && !l.unwanted
}

// UnparkGiven is Unpark, also if this process accepts nothing any more: for what is given
// to l.
func (s *Set) UnparkGiven(l *Listener) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.Gate.IsParked() {
		l.unpark()
	}
}

// unpark lets l accept, if it is to, and else return what is given to it. Set.mu is held.
func (l *Listener) unpark() {
	switch {
	case l.socks.open && !l.unwanted: // ReopenGates has called free
		l.restart()
	case !l.socks.open && l.finishOn():
	default: // for what has come back from a move, and for no other
		l.Gate.Set(gate.Shut)
	}
}

// Yield stops accepting on those of the handed sockets that the new process has
// claimed. The others stay open: this process alone serves them until it drains.
func (s *Set) Yield(handed []*Socket, claimed []int) {
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

// Pause stops accepting on every socket, and reading packets, until ReopenGates: what
// this process needs for that goes to another process, which may give it back. What comes
// waits, in the kernel; and what is given to a listener waits there.
func (s *Set) Pause() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open, s.handedOver, s.standingBy = false, true, false
	s.endMending()
	for _, sock := range s.all {
		if sock.Listener != nil {
			sock.Listener.detain()
		}
		sock.shutGate()
	}
}

// Busy returns the connections that are not finished, by their addresses.
func (s *Set) Busy() (all []string) {
	for _, sock := range s.Snapshot() {
		if sock.Listener == nil {
			continue
		}
		for _, t := range sock.Listener.Live.All() {
			all = append(all, t.describe())
		}
	}
	return all
}

// Cut closes all connections, and waits until their owners have noticed, or ctx ends. What
// is accepted after that end is not cut.
func (s *Set) Cut(ctx context.Context) {
	gone := make(chan struct{}, 1)
	for _, sock := range s.Snapshot() {
		if sock.Listener == nil {
			continue
		}
		defer sock.Listener.Live.Watch(func() {
			select {
			case gone <- struct{}{}:
			default:
			}
		})()
		all := sock.Listener.Live.All()
		if ctx.Err() != nil { // they may be of after that end
			return
		}
		for _, t := range all {
			t.Cut()
		}
	}
	for len(s.Busy()) > 0 {
		select {
		case <-gone:
		case <-ctx.Done():
			return
		}
	}
}

// LeaveEnd leaves the end of the handed sockets to the new process, which has
// claimed them, and may accept at any moment, until it hears that the service
// ends.
func (s *Set) LeaveEnd(handed []*Socket, claimed []int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, i := range claimed {
		if i >= 0 && i < len(handed) {
			handed[i].theirs = true
		}
	}
}

// EndAccept ends accepting, for good unless the upgrade is rolled back. What
// waits in the queue of a socket that no other process serves on is still
// accepted; its path is removed before, so that no new client comes, and then the
// socket ends for all processes that have a copy.
func (s *Set) EndAccept() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open, s.standingBy = false, false // a server that begins only now does not open it again
	s.endMending()
	for _, sock := range s.all {
		if sock.Listener != nil {
			sock.Listener.mayReturn.Store(s.handedOver)
			sock.Listener.free() // what was to move, and has come back, waits for nothing
		}
		switch {
		case sock.gate == nil:
		case sock.Listener != nil && (sock.Listener.IsShut() || sock.Listener.unwanted):
		case sock.Master || sock.yielded || s.inherited && sock.Index >= 0: // another process's
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

// Drain waits until the queues that no other process has are accepted, or until
// ctx ends or cut is closed. Servers call Accept meanwhile.
func (s *Set) Drain(ctx context.Context, cut <-chan struct{}) {
	for {
		left := s.isEnding()
		for _, sock := range s.Snapshot() {
			left = sock.Listener != nil && !sock.Listener.Finished() || left
		}
		if !left {
			return
		}
		select {
		case <-s.changed:
		case <-cut:
			return
		case <-ctx.Done():
			return
		}
	}
}

func (s *Set) check() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// LetGo closes this process's copies of the listeners that the new process has
// taken: it will not accept on them again, and while it holds them clients would
// still connect to a service that has ended.
func (s *Set) LetGo() {
	for _, sock := range s.Snapshot() {
		if sock.yielded && sock.Listener != nil {
			sock.Listener.letGo()
		}
	}
}

// Close ends all Accepts and all reads of packets. The packet conns themselves
// stay open, for answers.
func (s *Set) Close() {
	s.mu.Lock()
	s.closed = true
	s.endMending()
	s.mu.Unlock()
	for _, sock := range s.Snapshot() {
		switch {
		case sock.Listener != nil:
			sock.Listener.end()
		case sock.gate != nil:
			sock.gate.Set(gate.Closed)
		}
		sock.forget()
	}
	_, dropped := s.Seal()
	CloseInherited(dropped)
}

// Listeners returns those that listen on addr: one, or several with SO_REUSEPORT.
func (s *Set) Listeners(addr net.Addr) []*Listener {
	var found []*Listener
	for _, sock := range s.Snapshot() {
		if l := sock.Listener; l != nil && l.addr.Network() == addr.Network() && l.addr.String() == addr.String() {
			found = append(found, l)
		}
	}
	return found
}
