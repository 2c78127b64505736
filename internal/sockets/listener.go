package sockets

import (
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/julofinance/grace/v3/internal/gate"
)

// A Listener is what Upgrader.Listen gives: a *net.TCPListener or
// *net.UnixListener behind a gate, with the connections that came through it.
type Listener struct {
	Gate  *gate.Gate
	Sock  *Socket
	socks *Set
	addr  net.Addr
	Open  func() (Opened, error) // opens the same socket again

	expired error // of a Read whose deadline is one in the past

	custom bool // connections have options of the program's from the start

	// reopening is held while the socket is closed or opened anew, which may wait
	// for a disk; it is taken before Set.mu and mu. The goroutine that owns the
	// state does not take it.
	reopening sync.Mutex
	parking   atomic.Bool // park is under way

	mu    sync.Mutex // guards inner, shut, given, detains, detained, takes, cover, spared and unfinished
	inner Opened
	shut  bool       // inner is closed, and may be opened again
	given []net.Conn // to be accepted besides those of the socket
	// detains: what is given is not to be accepted yet; detained: how many of given
	// are not injected.
	detains  bool
	detained int
	takes    string // the protocol of connections that are moved to us
	cover    Cover  // of TLS connections; see Cover
	// spared is called by Close in place of closing the socket; see Spare.
	spared func()
	// unfinished: what is queued was not accepted to the end when Close has parked the
	// socket in place of closing it.
	unfinished bool
	// mayReturn is true if accepting ends for an upgrade, which may be rolled
	// back.
	mayReturn atomic.Bool

	// unwanted: the program itself has closed it, while nothing but a roll back
	// could need it. Guarded by Set.mu.
	unwanted bool

	Live live // last: closing a connection writes here, accepting reads the fields above
}

func (l *Listener) acceptor() Opened {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.inner
}

// Accept waits until this process is ready, and again once it has handed over.
// After Done it returns net.ErrClosed; at a last stop not before the queue is
// empty.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		mode, injected, err := l.Gate.Enter()
		if err != nil {
			return nil, l.acceptError(err)
		}
		if injected {
			if c := l.next(); c != nil {
				l.Gate.Leave()
				return c, nil
			}
		}
		if mode != gate.Open && mode != gate.Finishing {
			l.Gate.Leave()
			continue
		}
		if mode == gate.Finishing && !readable(l.Sock) && l.park() {
			l.Gate.Leave()
			continue
		}
		inner := l.acceptor()
		c, err := inner.Accept()
		if err == nil {
			if tc, ok := c.(*net.TCPConn); ok && inner.tune != nil {
				inner.tune(tc)
			}
			c = Tracked(c, l, nil, nil, nil)
		}
		l.Gate.Leave()
		if err != nil && l.outlives(inner) {
			continue
		}
		if err == nil || !l.Gate.MayRetry(err) {
			return c, err
		}
	}
}

func (l *Listener) acceptError(err error) error {
	return &net.OpError{Op: "accept", Net: l.addr.Network(), Addr: l.addr, Err: err}
}

// Give lets Accept return c: a connection that was moved to this process, or
// that could not be moved from it. That works while the gate is shut, too.
func (l *Listener) Give(c net.Conn) {
	l.mu.Lock()
	closed := l.Gate.IsClosed() // if not yet, end finds c
	if !closed {
		l.given = append(l.given, c)
		if l.detains {
			l.detained++
		} else {
			l.Gate.Inject(1)
		}
	}
	l.mu.Unlock()
	if closed {
		c.Close()
	}
}

// detain lets what is given wait until free is called.
func (l *Listener) detain() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.detains = true
}

// free ends detain, and what parkSpared has begun: the gate is set anew.
func (l *Listener) free() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.detains, l.unfinished = false, false
	if l.detained > 0 {
		l.Gate.Inject(l.detained)
		l.detained = 0
	}
}

func (l *Listener) next() net.Conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.given) == 0 {
		return nil
	}
	c := l.given[0]
	l.given[0] = nil
	l.given = l.given[1:]
	l.Gate.Inject(-1)
	return c
}

// TakeBack serves a connection on that was on its way to the new process. m could
// not move it, and is not given it again: it would fail again and again, and no
// request would be served meanwhile. If it is shared, the new process may have a
// copy of it.
func (l *Listener) TakeBack(t *Track, unread []byte, m *Mover, shared bool) {
	t.Inner.SetDeadline(time.Time{})
	t.mu.Lock()
	p := t.past()
	t.mu.Unlock()
	var c net.Conn
	if over := t.overTLS(); over == nil {
		c = Tracked(t.Inner, l, unread, t, m) // takes t's place in l.Live
	} else if tc, err := over.comeBack(l, m); err == nil {
		c = tc
	} else { // not reached: the TLS was taken out a moment before
		go t.Inner.Close() // may wait, if the program has set SO_LINGER
		return
	}
	back := TrackOf(c)
	back.come(p)
	back.mu.Lock()
	if shared {
		back.origin.set(originShared)
	}
	back.mu.Unlock()
	l.Give(c)
}

// Take notes that connections of this protocol may be moved to this process.
func (l *Listener) Take(proto string) (changed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	changed = l.takes != proto
	l.takes = proto
	return changed
}

// Release releases all connections, and those that are still to come.
func (l *Listener) Release(m *Mover, ending bool) {
	for _, t := range l.Live.release(m, ending) {
		t.release(m, ending)
	}
}

func (l *Listener) Protocol() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.takes
}

// park closes the socket once its queue is served: no other process serves on it. It
// can be opened again if the upgrade is rolled back; Accept waits for that, since
// what wraps the listener may not live on after an error. False if a connection is
// still to be injected: it wakes the goroutine that accepts; and if another goroutine is at
// it, which may have to wait for the start of a process: the gate tells when it has changed.
func (l *Listener) park() bool {
	if !l.parking.CompareAndSwap(false, true) {
		return false
	}
	l.reopening.Lock()
	l.mu.Lock()
	to := gate.Parked
	if l.mayReturn.Load() {
		to = gate.Shut
	}
	inner, parked := l.inner, l.Gate.Park(to)
	l.shut = l.shut || parked
	l.mu.Unlock()
	over := func() {
		l.reopening.Unlock()
		l.parking.Store(false)
	}
	if !parked {
		over()
		return false
	}
	end := func() {
		l.Sock.unlink() // no client finds the file, but it was kept aside for show
		over()
	}
	if l.Sock.tryClose(inner.Listener) {
		end()
	} else {
		go func() { l.Sock.closeListener(inner.Listener); end() }()
	}
	return true
}

// Finished reports whether nothing more is accepted. A socket whose queue is
// empty is closed here: perhaps no Accept is under way that would notice it.
func (l *Listener) Finished() bool {
	if l.Gate.IsFinishing() && !readable(l.Sock) {
		l.park()
	}
	return l.Gate.IsQuiet()
}

// drop closes the socket, which the program did not want any more while another
// process had it. The next roll back finds it closed: its file may be another socket's.
func (l *Listener) drop() {
	l.reopening.Lock()
	defer l.reopening.Unlock()
	if l.IsShut() {
		return
	}
	l.Sock.unlink()
	l.closeInner()
}

// IsShut reports whether the socket was closed when its queue was served.
func (l *Listener) IsShut() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.shut
}

// Spare makes Close only park the socket, and call closed; with nil it ends that.
func (l *Listener) Spare(closed func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.spared = closed
}

// letGo closes the socket in this process, for good. What comes back from a move
// is still accepted.
func (l *Listener) letGo() error { return l.Sock.closeListener(l.acceptor().Listener) }

// end is letGo, and ends Accept.
func (l *Listener) end() error {
	l.Gate.Set(gate.Closed)
	err := l.letGo()
	l.free()
	for c := l.next(); c != nil; c = l.next() {
		c.Close()
	}
	return err
}

// Close ends Accept. The socket is not handed over any more, and the path of a
// unix socket is removed with it, unless another process serves there.
//
// While the process drains after a hand-over the socket is only parked: should
// the new process die, it is needed again. Before that, in probation, it is the
// program that closes it, and a roll back does not open it again.
func (l *Listener) Close() error {
	if closed := l.parkSpared(); closed != nil {
		closed()
		return nil
	}
	if l.socks.Keep(l.Sock) {
		l.Gate.Set(gate.Parked)
		return nil
	}
	l.socks.Remove(l.Sock)
	return l.end()
}

// parkSpared parks the socket if it is spared, and returns what is to be called then.
func (l *Listener) parkSpared() (closed func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.spared != nil {
		finishing := func(m gate.Mode) bool { return m == gate.Finishing }
		l.unfinished = l.Gate.Change(finishing, gate.Parked) || l.unfinished
		l.Gate.Set(gate.Parked)
	}
	return l.spared
}

// IsQuiet reports whether no connection comes any more, and none is queued that is to be
// accepted after Unpark.
func (l *Listener) IsQuiet() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.Gate.IsQuiet() && !l.unfinished
}

func (l *Listener) isUnfinished() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.unfinished
}

// finishOn lets what is queued be accepted after all, and reports whether it was to be.
func (l *Listener) finishOn() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.unfinished {
		return false
	}
	l.unfinished = false
	l.Gate.Set(gate.Finishing)
	return true
}

// Addr, SetDeadline, SyscallConn and File are those of net.TCPListener. A program
// that calls File may pass the socket to a process of its own: the socket does
// not end with this process then.

func (l *Listener) Addr() net.Addr                        { return l.addr }
func (l *Listener) SetDeadline(t time.Time) error         { return l.Gate.SetDeadline(t) }
func (l *Listener) SyscallConn() (syscall.RawConn, error) { return l.acceptor().SyscallConn() }

func (l *Listener) File() (*os.File, error) {
	l.Sock.copied.Store(true)
	return l.acceptor().File()
}
