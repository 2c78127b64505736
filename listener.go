package grace

import (
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/julofinance/grace/v3/internal/gate"
)

// A listener is what Upgrader.Listen gives: a *net.TCPListener or
// *net.UnixListener behind a gate, with the connections that came through it.
type listener struct {
	gate  *gate.Gate
	sock  *socket
	socks *sockets
	addr  net.Addr
	open  func() (opened, error) // opens the same socket again

	expired error // of a Read whose deadline is one in the past

	custom bool // connections get options of the program's from the start

	// reopening is held while the socket is closed or opened anew, which may wait
	// for a disk; before sockets.mu and mu. The loop does not take it.
	reopening sync.Mutex

	mu    sync.Mutex
	inner opened
	shut  bool       // inner is closed, and may be opened again
	given []net.Conn // to be accepted besides those of the socket
	takes string     // the protocol of connections that are moved to us
	// spared is called by Close in place of closing the socket; see spare.
	spared func()
	held   atomic.Bool // see hold
	// mayReturn says that the end of accepting is an upgrade's, and not the last.
	mayReturn atomic.Bool

	// unwanted: the program itself has closed it, while nothing but a roll back
	// could need it. Guarded by sockets.mu.
	unwanted bool

	live live // last: who closes connections writes here, who accepts reads the rest
}

func (l *listener) acceptor() opened {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.inner
}

// Accept waits until this process is ready, and again once it has handed over.
// After Done it returns net.ErrClosed; at a last stop not before the queue is
// empty.
func (l *listener) Accept() (net.Conn, error) {
	for {
		mode, injected, err := l.gate.Enter()
		if err != nil {
			return nil, l.acceptError(err)
		}
		if injected {
			if c := l.next(); c != nil {
				l.gate.Leave()
				return c, nil
			}
		}
		if mode != gate.Open && mode != gate.Finishing {
			l.gate.Leave()
			continue
		}
		if mode == gate.Finishing && !readable(l.sock) && l.park() {
			l.gate.Leave()
			continue
		}
		if l.held.Load() {
			l.gate.Leave()
			return nil, l.acceptError(net.ErrClosed)
		}
		inner := l.acceptor()
		c, err := inner.Accept()
		if err == nil {
			if tc, ok := c.(*net.TCPConn); ok && inner.tune != nil {
				inner.tune(tc)
			}
			c = tracked(c, l, nil, nil, nil)
		}
		l.gate.Leave()
		if err != nil && l.outlives(inner) {
			continue
		}
		if err == nil && l.held.Load() { // for who accepts when the drain was called off
			l.give(c)
			return nil, l.acceptError(net.ErrClosed)
		}
		if err == nil || !l.gate.MayRetry(err) {
			return c, err
		}
	}
}

func (l *listener) acceptError(err error) error {
	return &net.OpError{Op: "accept", Net: l.addr.Network(), Addr: l.addr, Err: err}
}

// give lets Accept return c: a connection that was moved to this process, or
// that could not be moved from it. That works while the gate is shut, too.
func (l *listener) give(c net.Conn) {
	l.mu.Lock()
	closed := l.gate.IsClosed() // if not yet, who closes it finds c
	if !closed {
		l.given = append(l.given, c)
		l.gate.Inject(1)
	}
	l.mu.Unlock()
	if closed {
		c.Close()
	}
}

func (l *listener) next() net.Conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.given) == 0 {
		return nil
	}
	c := l.given[0]
	l.given[0] = nil
	l.given = l.given[1:]
	l.gate.Inject(-1)
	return c
}

// takeBack serves on a connection that was on its way out. m could not move it,
// and would fail again: without end, and without a request served meanwhile. If
// it is lent, new may have a copy of it.
func (l *listener) takeBack(t *track, unread []byte, m *mover, lent bool) {
	t.inner.SetDeadline(time.Time{})
	c := tracked(t.inner, l, unread, t, m) // takes t's place in l.live
	t.mu.Lock()
	p := t.past()
	t.mu.Unlock()
	back := trackOf(c)
	back.come(p)
	back.mu.Lock()
	back.lent = lent
	back.mu.Unlock()
	l.give(c)
}

// take says that connections of this protocol may be moved to us.
func (l *listener) take(proto string) (changed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	changed = l.takes != proto
	l.takes = proto
	return changed
}

// release is that of all connections, and of those that are still to come.
func (l *listener) release(m *mover, ending bool) {
	for _, t := range l.live.release(m, ending) {
		t.release(m, ending)
	}
}

func (l *listener) protocol() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.takes
}

// Park closes the socket once its queue is served: no other process serves on it. It
// can be opened again if the upgrade is rolled back; Accept waits for that, since
// what wraps the listener may not live on after an error. False if a connection is
// still to be injected: it wakes the goroutine that accepts.
func (l *listener) park() bool {
	l.reopening.Lock()
	l.mu.Lock()
	to := gate.Parked
	if l.mayReturn.Load() {
		to = gate.Shut
	}
	inner, parked := l.inner, l.gate.Park(to)
	l.shut = l.shut || parked
	l.mu.Unlock()
	if !parked {
		l.reopening.Unlock()
		return false
	}
	end := func() {
		l.sock.unlink() // nobody finds it, but it was kept for show
		l.reopening.Unlock()
	}
	if l.sock.tryClose(inner.Listener) {
		end()
	} else {
		go func() { l.sock.closeListener(inner.Listener); end() }()
	}
	return true
}

// finished says whether nothing more is accepted. A queue that is empty is
// closed here: perhaps nobody is in Accept who would see it.
func (l *listener) finished() bool {
	if l.gate.IsFinishing() && !readable(l.sock) {
		l.park()
	}
	return l.gate.IsQuiet()
}

// drop closes the socket, which the program did not want any more while another
// process had it.
func (l *listener) drop() {
	l.reopening.Lock()
	defer l.reopening.Unlock()
	l.sock.unlink()
	l.closeInner()
}

// isShut says whether the socket was closed when its queue was served.
func (l *listener) isShut() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.shut
}

// spare lets Close park the socket, and call closed; with nil no more.
func (l *listener) spare(closed func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.spared = closed
}

// hold lets Accept give nothing, as if the listener were closed, and keep what
// comes all the same; Close only parks it. Or it ends that.
func (l *listener) hold(on bool) { l.held.Store(on) }

// letGo closes the socket in this process, for good. What comes back from a move
// is still accepted.
func (l *listener) letGo() error { return l.sock.closeListener(l.acceptor().Listener) }

// end is letGo, and the end of Accept.
func (l *listener) end() error {
	l.gate.Set(gate.Closed)
	err := l.letGo()
	for c := l.next(); c != nil; c = l.next() {
		c.Close()
	}
	return err
}

// Close ends Accept. The socket is not handed over any more, and the path of a
// unix socket goes with it, unless another process serves there.
//
// While the process drains after a hand-over the socket is only parked: should
// the new process die, it is needed again. Before, in probation, it is the program
// that closes it, and a roll back does not open it again.
func (l *listener) Close() error {
	l.mu.Lock()
	closed := l.spared
	l.mu.Unlock()
	if closed != nil {
		l.gate.Set(gate.Parked)
		closed()
		return nil
	}
	if l.held.Load() { // what is queued at a last stop is accepted still
		l.gate.Change(func(m gate.Mode) bool { return m != gate.Finishing }, gate.Parked)
		return nil
	}
	if l.socks.keep(l.sock) {
		l.gate.Set(gate.Parked)
		return nil
	}
	l.socks.remove(l.sock)
	return l.end()
}

// Addr, SetDeadline, SyscallConn and File are those of net.TCPListener. Whoever
// calls File may pass the socket to a process of its own: it does not end with us.

func (l *listener) Addr() net.Addr                        { return l.addr }
func (l *listener) SetDeadline(t time.Time) error         { return l.gate.SetDeadline(t) }
func (l *listener) SyscallConn() (syscall.RawConn, error) { return l.acceptor().SyscallConn() }

func (l *listener) File() (*os.File, error) {
	l.sock.copied.Store(true)
	return l.acceptor().File()
}
