package sockets

import (
	"context"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/julofinance/grace/v3/internal/fd"
	"github.com/julofinance/grace/v3/internal/gate"
	"github.com/julofinance/grace/v3/internal/manifest"
)

// A Socket is one descriptor that every generation has: inherited from the one
// before, or opened here.
type Socket struct {
	manifest.Entry
	Index    int        // in the manifest of the generation before; -1 if opened here
	gate     *gate.Gate // of a listener or packet conn; nil otherwise
	Listener *Listener  // of a listener; nil otherwise
	// yielded is true if the new process has taken it: this process is not to
	// accept on it any more, nor to remove its path.
	yielded bool

	// whole makes a listener or packet conn what it was before, and reports
	// whether it was opened anew for that; see mend.go. nil: there is nothing to
	// mend.
	whole   func(context.Context) (opened bool, err error)
	mending *mending // nil: nothing is mended; guarded by Set.mu

	// shared is true if another process has, or had, the socket too.
	shared atomic.Bool
	// shutBefore is true if a packet conn had been shut down when it was handed
	// over.
	shutBefore atomic.Bool

	// last is true if no process is to accept on it after this one: see end.
	// theirs is true if another process has a copy, may accept on it, and is told
	// to stop: the end of the socket is up to that process. theirs is guarded by
	// Set.mu.
	last   atomic.Bool
	theirs bool
	// copied is true if the program has a copy, of File, and may have passed it
	// on.
	copied atomic.Bool

	fileMu sync.Mutex
	file   socketFile // guarded by fileMu

	mu  sync.Mutex // guards Raw
	Raw syscall.RawConn

	// FD is the descriptor of a listener, -1 once it is closed. Closing is held
	// while the listener is closed, replaced by another one, or handed over.
	Closing sync.Mutex
	FD      int
}

func (sock *Socket) setRaw(raw syscall.RawConn) error {
	fd := -1
	if err := raw.Control(func(n uintptr) { fd = int(n) }); err != nil {
		return err
	}
	sock.mu.Lock()
	sock.Raw = raw
	sock.mu.Unlock()
	sock.Closing.Lock()
	sock.FD = fd
	sock.Closing.Unlock()
	return nil
}

// closeListener closes l, the listener of sock.
func (sock *Socket) closeListener(l fd.Listener) error {
	sock.endLast()
	sock.Closing.Lock()
	defer sock.Closing.Unlock()
	return sock.closeHeld(l)
}

// tryClose is closeListener, but returns false while a new process is started
// with the socket: that may hang, and the end of this process does not wait for
// it.
func (sock *Socket) tryClose(l fd.Listener) bool {
	sock.endLast()
	if !sock.Closing.TryLock() {
		return false
	}
	defer sock.Closing.Unlock()
	sock.closeHeld(l)
	return true
}

func (sock *Socket) endLast() {
	if sock.last.Load() && !sock.copied.Load() {
		sock.end() // at once: Closing is held while a new process starts
	}
}

// closeHeld is closeListener; Closing is held.
func (sock *Socket) closeHeld(l fd.Listener) error {
	sock.FD = -1
	sock.freeToClose()
	return l.Close()
}

// Control calls f with the descriptor; an error means that it is closed.
func (sock *Socket) Control(f func(fd uintptr)) error {
	sock.mu.Lock()
	raw := sock.Raw
	sock.mu.Unlock()
	return raw.Control(f)
}

// shutGate stops accepting, or reading packets; the socket stays open, for other
// processes that have it.
func (sock *Socket) shutGate() {
	if sock.gate == nil {
		return
	}
	sock.gate.Set(gate.Shut)
}

// freeToClose is called before the socket is closed. Close waits for the system
// calls on it, and nothing can be done to its descriptor meanwhile.
func (sock *Socket) freeToClose() {
	if sock.gate.IsOccupied() {
		sock.nonblock()
	}
}

// WithFDs calls f with those of socks that are open, and their descriptors.
// None of them can be closed meanwhile, and no copy is made.
func WithFDs(socks []*Socket, f func(open []*Socket, fds []int) error) error {
	fds := make([]int, len(socks)) // below 0: closed
	var others []int               // indexes in socks of those whose descriptor only Control gives
	for i, sock := range socks {
		sock.Closing.Lock()
		defer sock.Closing.Unlock()
		if sock.Listener == nil {
			others = append(others, i)
			continue
		}
		fds[i] = sock.FD
	}
	return withOthers(socks, others, fds, func() error {
		open := make([]*Socket, 0, len(socks))
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

func withOthers(socks []*Socket, others, fds []int, f func() error) (err error) {
	if len(others) == 0 {
		return f()
	}
	i := others[0]
	if socks[i].Control(func(fd uintptr) {
		fds[i] = int(fd)
		err = withOthers(socks, others[1:], fds, f)
	}) != nil { // closed
		fds[i] = -1
		return withOthers(socks, others[1:], fds, f)
	}
	return err
}
