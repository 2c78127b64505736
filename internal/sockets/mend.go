package sockets

import (
	"context"
	"sync"
	"time"

	"github.com/julofinance/grace/v3/internal/gate"
)

// After an upgrade that has failed, or was rolled back, a listener is made again
// what it was before: the new process may have closed it, removed its path, or
// shut it down for all processes that have it, and the old process may have
// closed what the new one had dropped. Where it can't be opened at once it is
// tried until it works, or until it is not wanted any more. Meanwhile only this
// address is not served: Accept waits. The same holds for sockets of packets: see
// packet_mend.go.

// start lets connections in for the first time. Set.mu is held.
func (l *Listener) start() error {
	err := l.listenLate()
	if err == nil {
		l.Gate.Set(gate.Open)
	}
	return err
}

// listenLate listens on what was only bound before.
func (l *Listener) listenLate() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.inner.late {
		return nil
	}
	err := l.Sock.listenNow()
	l.inner.late = err != nil
	return err
}

// restart lets connections in again, now or as soon as the listener is mended.
// Set.mu is held.
func (l *Listener) restart() {
	err := l.listenLate() // if the program has opened it after the hand-over, it does not listen yet
	l.mu.Lock()
	if l.shut || err != nil {
		l.Gate.Set(gate.Shut)
	} else {
		l.Gate.Set(gate.Open)
	}
	l.mu.Unlock()
	l.socks.mend(l.Sock)
}

// A mending looks after one socket.
type mending struct {
	ctx   context.Context
	tried chan struct{} // closed when the first try is over
	again bool          // asked for once more meanwhile; guarded by Set.mu
}

// mend mends sock, in a goroutine of its own: files, and other things that it
// needs, may take their time. s.mu is held.
func (s *Set) mend(sock *Socket) {
	if sock.Listener != nil && sock.Listener.unwanted {
		return
	}
	if sock.mending != nil && sock.mending.ctx.Err() == nil {
		sock.mending.again = true
		return
	}
	if s.mending == nil {
		s.mending, s.stopMending = context.WithCancel(context.Background())
	}
	m := &mending{ctx: s.mending, tried: make(chan struct{})}
	sock.mending = m
	go s.runMending(sock, m)
}

func (s *Set) runMending(sock *Socket, m *mending) {
	network, addr := sock.Network, sock.Bound
	what := "listener"
	if sock.Listener == nil {
		what = "packet socket"
	}
	tried := sync.OnceFunc(func() { close(m.tried) })
	defer tried() // the next upgrade waits for it
	for n, wait := 1, 10*time.Millisecond; m.ctx.Err() == nil && !sock.gate.IsClosed(); n, wait = n+1, min(2*wait, 5*time.Second) {
		opened, err := sock.whole(m.ctx)
		tried()
		switch {
		case m.ctx.Err() != nil:
			continue // the loop ends
		case err == nil && opened:
			s.Log.Info("grace: a "+what+" was opened again", "network", network, "address", addr, "tries", n)
		case err != nil && n == 1:
			s.Log.Error("grace: a "+what+" can't be opened again; the others serve, and it is tried until it works", "network", network, "address", addr, "err", err)
		}
		if err == nil && s.mended(sock, m) {
			return
		}
		if err != nil {
			select {
			case <-time.After(wait):
			case <-m.ctx.Done():
			}
		}
	}
	s.mended(sock, m)
}

// mended ends the mending, unless it was asked for again.
func (s *Set) mended(sock *Socket, m *mending) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	again := m.again
	m.again = false
	if sock.mending == m && !again {
		sock.mending = nil
	}
	return !again
}

// makeWhole mends what has to be mended, and reports whether the listener was
// opened anew for that. It may wait for a disk, a lock and the start of a
// process: no lock but reopening is held meanwhile.
func (l *Listener) makeWhole(ctx context.Context) (again bool, err error) {
	l.reopening.Lock()
	defer l.reopening.Unlock()
	l.Sock.show()
	if l.isYielded() { // the new process has it by now; a roll back mends again
		return false, nil
	}
	if !l.IsShut() && !l.Sock.listens() && l.shutGate(ctx) {
		// The process that has shut it down has emptied its queue too. Its address
		// must be free for the next one.
		l.Sock.unlink()
		l.closeInner()
	}
	if !l.IsShut() && !l.Sock.lost() {
		l.socks.reopenGate(ctx, l.Gate)
		return false, nil
	}
	inner, err := l.Open()
	if err != nil {
		return true, err
	}
	err = l.replace(ctx, inner)
	return !l.isYielded(), err
}

func (l *Listener) isYielded() bool {
	l.socks.mu.Lock()
	defer l.socks.mu.Unlock()
	return l.Sock.yielded
}

func (l *Listener) shutGate(ctx context.Context) bool { return l.socks.shutGate(ctx, l.Gate) }

// shutGate lets the calls that come to g wait; false if it is not to be mended
// any more.
func (s *Set) shutGate(ctx context.Context, g *gate.Gate) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ctx.Err() != nil || g.IsClosed() {
		return false
	}
	g.Set(gate.Shut)
	return true
}

func (s *Set) reopenGate(ctx context.Context, g *gate.Gate) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ctx.Err() == nil && s.open {
		g.Swap(gate.Shut, gate.Open)
	}
}

// closeInner closes the socket, to be replaced.
func (l *Listener) closeInner() {
	l.mu.Lock()
	inner := l.inner
	l.shut = true
	l.mu.Unlock()
	l.Sock.closeListener(inner.Listener)
}

// replace puts another socket in the place of l's. If the path of the former one
// is lost, what waits in its queue is accepted first.
func (l *Listener) replace(ctx context.Context, inner Opened) error {
	raw, err := inner.SyscallConn()
	if err != nil {
		inner.Close()
		return err
	}
	if !l.IsShut() && l.shutGate(ctx) {
		l.acceptRest()
		l.closeInner()
	}
	if !l.IsShut() { // the listener is about to end
		inner.Close()
		return ctx.Err()
	}
	if err := l.Sock.setRaw(raw); err != nil {
		inner.Close()
		return err
	}
	l.Sock.refile()
	if inner.late {
		if err := l.Sock.listenNow(); err != nil {
			l.Sock.closeListener(inner.Listener)
			return err
		}
		inner.late = false
	}
	if !l.install(ctx, inner) {
		l.Sock.unlink()
		l.Sock.closeListener(inner.Listener)
		return ctx.Err()
	}
	return nil
}

// install lets Accept go on, on inner; false if the listener is not to accept any
// more, or was taken by the new process since the mending began: this process
// would accept beside it, for as long as it stands by.
func (l *Listener) install(ctx context.Context, inner Opened) bool {
	l.socks.mu.Lock()
	defer l.socks.mu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	if ctx.Err() != nil || l.Gate.IsClosed() || l.Sock.yielded {
		return false
	}
	l.inner, l.shut = inner, false
	l.Gate.Replace(inner.SetDeadline)
	l.Gate.Set(gate.Open)
	return !l.Gate.IsClosed() // it may have been closed meanwhile
}

// acceptRest accepts what waits in the queue. The gate is shut.
func (l *Listener) acceptRest() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.inner.SetDeadline(time.Now().Add(100 * time.Millisecond))
	for readable(l.Sock) {
		c, err := l.inner.Accept()
		if err != nil {
			return
		}
		l.given = append(l.given, Tracked(c, l, nil, nil, nil))
		l.Gate.Inject(1)
	}
}

// outlives reports whether l lives on though Accept has failed on inner: that was
// replaced, or is about to be, or was shut down by another process that had it,
// and is mended.
func (l *Listener) outlives(inner Opened) bool {
	replaced := func() bool { return l.IsShut() || l.acceptor().Listener != inner.Listener }
	switch {
	case replaced():
		return true // the gate decides what comes next
	case l.Sock.Master || l.Sock.Index < 0 && !l.Sock.shared.Load():
		return false
	case l.Sock.listens():
		return replaced()
	}
	l.socks.mu.Lock()
	defer l.socks.mu.Unlock()
	if !l.socks.open || l.Gate.IsClosed() {
		// At the end of the service the new process may have ended it, and its
		// queue, first.
		return l.Gate.IsShut() || l.Gate.Swap(gate.Finishing, gate.Shut)
	}
	l.Gate.Set(gate.Shut)
	l.socks.mend(l.Sock)
	return true
}

// MendAll mends all sockets: the new process is dead, and was not ready.
func (s *Set) MendAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.open {
		return
	}
	for _, sock := range s.all {
		if sock.whole != nil && sock.shared.Load() {
			s.mend(sock)
		}
	}
}

// Settled waits until each socket that is being mended was tried once.
func (s *Set) Settled(ctx context.Context) {
	for _, tried := range s.tries() {
		select {
		case <-tried:
		case <-ctx.Done():
			return
		}
	}
}

func (s *Set) tries() (all []chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sock := range s.all {
		if sock.mending != nil {
			all = append(all, sock.mending.tried)
		}
	}
	return all
}

// endMending ends all mending: what is not open by now is not wanted any more.
// s.mu is held.
func (s *Set) endMending() {
	if s.stopMending != nil {
		s.stopMending()
		s.mending, s.stopMending = nil, nil
	}
}

// OpenAnew closes the socket of l, opens it as a roll back does, and waits for
// that, so that tests can see the result.
func (s *Set) OpenAnew(ctx context.Context, l *Listener) {
	l.Sock.closeListener(l.acceptor().Listener)
	l.mu.Lock()
	l.shut = true
	l.mu.Unlock()
	s.mu.Lock()
	s.mend(l.Sock)
	s.mu.Unlock()
	s.Settled(ctx)
}
