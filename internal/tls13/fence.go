package tls13

import (
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// A Fence stands between a *tls.Conn and the connection below. Once it is shut, it lets
// nothing through any more that the *tls.Conn does: no record, no deadline, no Close.
// What the *tls.Conn goes on writing is held back, for [ExtractClosed]. A Fence is
// never opened again: whoever serves the connection on, in this process or in another,
// does so without it.
type Fence struct {
	net.Conn
	shut atomic.Bool

	mu   sync.Mutex // guards held
	held []byte
}

// maxHeld is more than the record of close_notify has.
const maxHeld = 64

// Shut shuts the fence. No Read or Write may be under way. Deadlines that were set stay.
func (f *Fence) Shut() { f.shut.Store(true) }

// Held returns what was written since Shut.
func (f *Fence) Held() []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.held
}

// NetConn is the connection below.
func (f *Fence) NetConn() net.Conn { return f.Conn }

func (f *Fence) Read(p []byte) (int, error) {
	if f.shut.Load() {
		return 0, net.ErrClosed
	}
	return f.Conn.Read(p)
}

func (f *Fence) Write(p []byte) (int, error) {
	if !f.shut.Load() {
		return f.Conn.Write(p)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.held)+len(p) > maxHeld {
		return 0, net.ErrClosed
	}
	f.held = append(f.held, p...)
	return len(p), nil
}

func (f *Fence) Close() error {
	if f.shut.Load() {
		return nil
	}
	return f.Conn.Close()
}

func (f *Fence) SetDeadline(t time.Time) error      { return f.set(f.Conn.SetDeadline, t) }
func (f *Fence) SetReadDeadline(t time.Time) error  { return f.set(f.Conn.SetReadDeadline, t) }
func (f *Fence) SetWriteDeadline(t time.Time) error { return f.set(f.Conn.SetWriteDeadline, t) }

func (f *Fence) set(set func(time.Time) error, t time.Time) error {
	if f.shut.Load() {
		return nil
	}
	return set(t)
}
