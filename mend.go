package grace

import (
	"context"
	"sync"
	"time"

	"github.com/julofinance/grace/v3/internal/gate"
)

// What a listener was before an upgrade that has failed, or was rolled back, it is
// again: new may have closed it, removed its path, or shut it down for all who
// have it, and old may have closed what new had dropped. Where it can't be opened
// at once it is tried until it works, or until it is not wanted any more. That
// costs nothing but this address: Accept waits. The same for sockets of packets:
// see packet_mend.go.

// start lets connections in, at the first time. sockets.mu is held.
func (l *listener) start() error {
	err := l.listenLate()
	if err == nil {
		l.gate.Set(gate.Open)
	}
	return err
}

// listenLate listens on what was only bound before.
func (l *listener) listenLate() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.inner.late {
		return nil
	}
	err := l.sock.listenNow()
	l.inner.late = err != nil
	return err
}

// restart lets connections in again, now or as soon as the listener is mended.
// sockets.mu is held.
func (l *listener) restart() {
	err := l.listenLate() // one that the program has opened after the hand-over
	l.mu.Lock()
	if l.shut || err != nil {
		l.gate.Set(gate.Shut)
	} else {
		l.gate.Set(gate.Open)
	}
	l.mu.Unlock()
	l.socks.mend(l.sock)
}

// A mending looks after one socket.
type mending struct {
	ctx   context.Context
	tried chan struct{} // closed when the first try is over
	again bool          // asked for once more meanwhile; guarded by sockets.mu
}

// mend looks after sock, in a goroutine of its own: files, and whatever else it
// asks, may take their time. s.mu is held.
func (s *sockets) mend(sock *socket) {
	if sock.listener != nil && sock.listener.unwanted {
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

func (s *sockets) runMending(sock *socket, m *mending) {
	network, addr := sock.Network, sock.Bound
	what := "listener"
	if sock.listener == nil {
		what = "packet socket"
	}
	tried := sync.OnceFunc(func() { close(m.tried) })
	defer tried() // the next upgrade waits for it
	for n, wait := 1, 10*time.Millisecond; m.ctx.Err() == nil && !sock.gate.IsClosed(); n, wait = n+1, min(2*wait, 5*time.Second) {
		opened, err := sock.whole(m.ctx)
		tried()
		switch {
		case m.ctx.Err() != nil:
			continue // to the end
		case err == nil && opened:
			s.log.Info("grace: a "+what+" was opened again", "network", network, "address", addr, "tries", n)
		case err != nil && n == 1:
			s.log.Error("grace: a "+what+" can't be opened again; the others serve, and it is tried until it works", "network", network, "address", addr, "err", err)
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
func (s *sockets) mended(sock *socket, m *mending) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	again := m.again
	m.again = false
	if sock.mending == m && !again {
		sock.mending = nil
	}
	return !again
}

// makeWhole mends what has to be mended, and says whether the listener was opened
// anew for that. It waits for a disk, a lock and a start of a process: no lock is
// held meanwhile but reopening.
func (l *listener) makeWhole(ctx context.Context) (again bool, err error) {
	l.reopening.Lock()
	defer l.reopening.Unlock()
	l.sock.show()
	if l.isYielded() { // new's by now; a roll back asks again
		return false, nil
	}
	if !l.isShut() && !l.sock.listens() && l.shutGate(ctx) {
		// Whoever has shut it down has emptied its queue too. Its address must
		// be free for the next one.
		l.sock.unlink()
		l.closeInner()
	}
	if !l.isShut() && !l.sock.lost() {
		l.socks.reopenGate(ctx, l.gate)
		return false, nil
	}
	inner, err := l.open()
	if err != nil {
		return true, err
	}
	err = l.replace(ctx, inner)
	return !l.isYielded(), err
}

func (l *listener) isYielded() bool {
	l.socks.mu.Lock()
	defer l.socks.mu.Unlock()
	return l.sock.yielded
}

func (l *listener) shutGate(ctx context.Context) bool { return l.socks.shutGate(ctx, l.gate) }

// shutGate lets who comes to g wait; false if it is not to be mended any more.
func (s *sockets) shutGate(ctx context.Context, g *gate.Gate) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ctx.Err() != nil || g.IsClosed() {
		return false
	}
	g.Set(gate.Shut)
	return true
}

func (s *sockets) reopenGate(ctx context.Context, g *gate.Gate) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ctx.Err() == nil && s.open {
		g.Swap(gate.Shut, gate.Open)
	}
}

// closeInner closes the socket, to be replaced.
func (l *listener) closeInner() {
	l.mu.Lock()
	inner := l.inner
	l.shut = true
	l.mu.Unlock()
	l.sock.closeListener(inner.Listener)
}

// Replace puts another socket in the place of l's. What waits in the queue of the
// former, whose path is lost, is accepted before.
func (l *listener) replace(ctx context.Context, inner opened) error {
	raw, err := inner.SyscallConn()
	if err != nil {
		inner.Close()
		return err
	}
	if !l.isShut() && l.shutGate(ctx) {
		l.acceptRest()
		l.closeInner()
	}
	if !l.isShut() { // it ends
		inner.Close()
		return ctx.Err()
	}
	if err := l.sock.setRaw(raw); err != nil {
		inner.Close()
		return err
	}
	l.sock.refile()
	if inner.late {
		if err := l.sock.listenNow(); err != nil {
			l.sock.closeListener(inner.Listener)
			return err
		}
		inner.late = false
	}
	if !l.install(ctx, inner) {
		l.sock.unlink()
		l.sock.closeListener(inner.Listener)
		return ctx.Err()
	}
	return nil
}

// install lets Accept go on, on inner; false if the listener is not to accept any
// more, or is new's since the mending began: this process would accept beside it,
// and for as long as it stands by.
func (l *listener) install(ctx context.Context, inner opened) bool {
	l.socks.mu.Lock()
	defer l.socks.mu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	if ctx.Err() != nil || l.gate.IsClosed() || l.sock.yielded {
		return false
	}
	l.inner, l.shut = inner, false
	l.gate.Replace(inner.SetDeadline)
	l.gate.Set(gate.Open)
	return !l.gate.IsClosed() // meanwhile
}

// acceptRest accepts what waits in the queue. The gate is shut.
func (l *listener) acceptRest() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.inner.SetDeadline(time.Now().Add(100 * time.Millisecond))
	for readable(l.sock) {
		c, err := l.inner.Accept()
		if err != nil {
			return
		}
		l.given = append(l.given, tracked(c, l, nil, nil, nil))
		l.gate.Inject(1)
	}
}

// outlives says whether l lives on though Accept has failed on inner: that was
// replaced, or is about to be, or was shut down by another process that had it,
// and is mended.
func (l *listener) outlives(inner opened) bool {
	replaced := func() bool { return l.isShut() || l.acceptor().Listener != inner.Listener }
	switch {
	case replaced():
		return true // the gate says what comes next
	case l.sock.Master || l.sock.index < 0 && !l.sock.shared.Load():
		return false
	case l.sock.listens():
		return replaced()
	}
	l.socks.mu.Lock()
	defer l.socks.mu.Unlock()
	if !l.socks.open || l.gate.IsClosed() {
		// At the end of the service new may have ended it first, and its queue.
		return l.gate.IsShut() || l.gate.Swap(gate.Finishing, gate.Shut)
	}
	l.gate.Set(gate.Shut)
	l.socks.mend(l.sock)
	return true
}

// mendAll looks after all sockets: new is dead, and was not ready.
func (s *sockets) mendAll() {
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

// settled waits until each socket that is being mended was tried once.
func (s *sockets) settled(ctx context.Context) {
	for _, tried := range s.tries() {
		select {
		case <-tried:
		case <-ctx.Done():
			return
		}
	}
}

func (s *sockets) tries() (all []chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sock := range s.all {
		if sock.mending != nil {
			all = append(all, sock.mending.tried)
		}
	}
	return all
}

// endMending: what is not open by now is not wanted any more. s.mu is held.
func (s *sockets) endMending() {
	if s.stopMending != nil {
		s.stopMending()
		s.mending, s.stopMending = nil, nil
	}
}
