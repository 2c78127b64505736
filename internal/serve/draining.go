package serve

import (
	"context"
	"sync"
)

// A drainSignal tells the program's own code that the process drains. The zero value is
// ready to use.
type drainSignal struct {
	mu     sync.Mutex    // guards the following
	c      chan struct{} // closed while the process drains; nil: it was not asked for yet
	closed bool
}

// channel returns the channel of the drain that runs, or of the next one.
func (s *drainSignal) channel() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.c == nil {
		s.c = make(chan struct{})
	}
	return s.c
}

// set closes the channel, or, when a drain was called off, makes way for another one: a
// channel can't be opened again.
func (s *drainSignal) set(drains bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if drains == s.closed {
		return
	}
	s.closed = drains
	switch {
	case !drains:
		s.c = nil
	case s.c == nil:
		s.c = make(chan struct{})
		fallthrough
	default:
		close(s.c)
	}
}

// Draining returns a channel that is closed while the process drains.
func (h *Host) Draining() <-chan struct{} { return h.drains.channel() }

// SetDraining is called when a drain begins, and when it was called off.
func (h *Host) SetDraining(drains bool) { h.drains.set(drains) }

// hostKey is that of the Host in the context of a request.
type hostKey struct{}

// withHost is on the way to each request's context. It is called once for a listener:
// neither a request nor a connection costs anything.
func (h *Host) withHost(ctx context.Context) context.Context {
	return context.WithValue(ctx, hostKey{}, h)
}

// HostOf returns the Host that serves the request with this context; nil if none does.
func HostOf(ctx context.Context) *Host {
	h, _ := ctx.Value(hostKey{}).(*Host)
	return h
}

// LameDuck lets the servers send their clients away, and go on serving those that come.
func (h *Host) LameDuck() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lame = true
	for _, d := range h.servers {
		if s, ok := d.(*httpServer); ok {
			s.lame.Store(true)
			go s.goAway(goAwayTime)
		}
	}
}
