package grace

import (
	"context"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/julofinance/grace/v3/internal/fd"
	"github.com/julofinance/grace/v3/internal/gate"
	"github.com/julofinance/grace/v3/internal/manifest"
)

// A socket is one descriptor that every generation has: inherited from the one
// before, or opened here.
type socket struct {
	manifest.Entry
	index    int        // in the manifest of the generation before; -1 if opened here
	gate     *gate.Gate // of a listener or packet conn; nil otherwise
	listener *listener  // of a listener; nil otherwise
	// yielded says that new has taken it: this process is not to accept on it
	// any more, nor to remove its path.
	yielded bool

	// whole makes of a listener or packet conn what it was, and says whether it was
	// opened anew for that; see mend.go. nil: there is nothing to mend.
	whole   func(context.Context) (opened bool, err error)
	mending *mending // nil: nothing is mended; guarded by sockets.mu

	// shared says that another process has, or had, the socket too.
	shared atomic.Bool
	// shutBefore says that a packet conn had been shut down when it was handed over.
	shutBefore atomic.Bool

	// last says that no process is to accept on it after this one: see end. theirs
	// that one may which has a copy, and is told to stop: the end is up to it. It is
	// guarded by sockets.mu.
	last   atomic.Bool
	theirs bool
	// copied says that the program has a copy, of File, and may have passed it on.
	copied atomic.Bool

	fileMu sync.Mutex
	file   socketFile // guarded by fileMu

	mu  sync.Mutex
	raw syscall.RawConn

	// Of a listener: its descriptor, -1 once it is closed. Who closes it, or puts
	// another one in its place, holds closing, and so does who hands it over.
	closing sync.Mutex
	fd      int
}

func (sock *socket) setRaw(raw syscall.RawConn) error {
	fd := -1
	if err := raw.Control(func(n uintptr) { fd = int(n) }); err != nil {
		return err
	}
	sock.mu.Lock()
	sock.raw = raw
	sock.mu.Unlock()
	sock.closing.Lock()
	sock.fd = fd
	sock.closing.Unlock()
	return nil
}

// closeListener closes l, the listener of sock.
func (sock *socket) closeListener(l fd.Listener) error {
	sock.endLast()
	sock.closing.Lock()
	defer sock.closing.Unlock()
	return sock.closeHeld(l)
}

// tryClose is closeListener, but false while a new process is started with the
// socket: that may hang, and the end of this process does not wait for it.
func (sock *socket) tryClose(l fd.Listener) bool {
	sock.endLast()
	if !sock.closing.TryLock() {
		return false
	}
	defer sock.closing.Unlock()
	sock.closeHeld(l)
	return true
}

func (sock *socket) endLast() {
	if sock.last.Load() && !sock.copied.Load() {
		sock.end() // at once: closing is held while a new process starts
	}
}

// closeHeld is closeListener; closing is held.
func (sock *socket) closeHeld(l fd.Listener) error {
	sock.fd = -1
	sock.freeToClose()
	return l.Close()
}

// control calls f with the descriptor; an error means that it is closed.
func (sock *socket) control(f func(fd uintptr)) error {
	sock.mu.Lock()
	raw := sock.raw
	sock.mu.Unlock()
	return raw.Control(f)
}

// shutGate stops accepting, or reading packets; the socket stays, for others
// that have it.
func (sock *socket) shutGate() {
	if sock.gate == nil {
		return
	}
	sock.gate.Set(gate.Shut)
}

// freeToClose is called before the socket is closed. Close waits for who is in a
// system call on it, and nothing can be done to its descriptor meanwhile.
func (sock *socket) freeToClose() {
	if sock.gate.IsOccupied() {
		sock.nonblock()
	}
}

// withFDs calls f with those of socks that are open, and their descriptors.
// None of them can be closed meanwhile, and no copy is made.
func withFDs(socks []*socket, f func(open []*socket, fds []int) error) error {
	fds := make([]int, len(socks)) // below 0: closed
	var others []int               // in socks, whose descriptors only control holds
	for i, sock := range socks {
		sock.closing.Lock()
		defer sock.closing.Unlock()
		if sock.listener == nil {
			others = append(others, i)
			continue
		}
		fds[i] = sock.fd
	}
	return withOthers(socks, others, fds, func() error {
		open := make([]*socket, 0, len(socks))
		n := 0
		for i, sock := range socks {
			if fds[i] >= 0 {
				open, fds[n] = append(open, sock), fds[i]
				n++
			}
		}
		return f(open, fds[:n])
	})
}

func withOthers(socks []*socket, others, fds []int, f func() error) (err error) {
	if len(others) == 0 {
		return f()
	}
	i := others[0]
	if socks[i].control(func(fd uintptr) {
		fds[i] = int(fd)
		err = withOthers(socks, others[1:], fds, f)
	}) != nil { // closed
		fds[i] = -1
		return withOthers(socks, others[1:], fds, f)
	}
	return err
}
