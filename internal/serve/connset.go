package serve

import (
	"net"
	"sync"
	"sync/atomic"

	"github.com/julofinance/grace/v3/internal/sockets"
)

// A connSet is all that a server drains: those of its listeners that are ours,
// and the connections that came through them.
type connSet struct {
	mu        sync.Mutex // guards listeners and changed
	listeners []*sockets.Listener
	changed   chan struct{} // closed when something may have ended

	// waits is true while a goroutine waits for changed. That sets it before it
	// looks at what has ended, and what ends is marked so before waits is looked
	// at.
	waits atomic.Bool
}

// listens adds those of our listeners that ln is, or wraps. A wrapper is expected
// to return the Addr of what it wraps.
func (s *connSet) listens(h *Host, ln net.Listener) (found []*sockets.Listener) {
	if l, ok := ln.(*sockets.Listener); ok {
		found = []*sockets.Listener{l}
	} else {
		found = h.Socks.Listeners(ln.Addr())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range found {
		s.listeners = append(s.listeners, l)
		l.Gate.Watch(s.check)
		l.Live.Watch(s.check)
	}
	return found
}

// listensWith adds ln to the listeners of a server.
func (h *Host) listensWith(s *connSet, ln net.Listener) []*sockets.Listener {
	found := s.listens(h, ln)
	if len(found) == 0 {
		h.Log.Warn("grace: a server listens on a socket that is not one of Listen's: no new process will get it", "address", ln.Addr())
	}
	return found
}

func (s *connSet) all() []*sockets.Listener {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.listeners
}

// find returns the connection with this address, see Live.Find of
// internal/sockets.
func (s *connSet) find(addr net.Addr) *sockets.Track {
	for _, l := range s.all() {
		if t := l.Live.Find(addr); t != nil {
			return t
		}
	}
	return nil
}

func (s *connSet) tracks() (all []*sockets.Track) {
	for _, l := range s.all() {
		all = append(all, l.Live.All()...)
	}
	return all
}

// left counts what is not over yet: connections, with hijacked ones or without,
// and listeners through which some may still come.
func (s *connSet) left(hijacked bool) (n int) {
	for _, l := range s.all() {
		if !l.Gate.IsQuiet() {
			n++
		}
	}
	return n + s.open(hijacked)
}

// open counts the connections that are not over yet.
func (s *connSet) open(hijacked bool) (n int) {
	for _, l := range s.all() {
		n += l.Live.Count(hijacked)
	}
	return n
}

// quiet reports whether no connection comes any more.
func (s *connSet) quiet() bool {
	for _, l := range s.all() {
		if !l.IsQuiet() {
			return false
		}
	}
	return true
}

// check wakes the goroutine that waits for an end.
func (s *connSet) check() {
	if !s.waits.Load() {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
}

// wait returns true when ended does, which is called again at each change; false
// if the drain's time is up or it was called off before.
func (s *connSet) wait(d *Drain, ended func() bool) bool {
	s.waits.Store(true)
	defer s.waits.Store(false)
	for {
		s.mu.Lock()
		if s.changed == nil {
			s.changed = make(chan struct{})
		}
		changed := s.changed
		s.mu.Unlock()
		if ended() {
			return true
		}
		select {
		case <-changed:
		case <-d.cut:
			return false
		case <-d.ctx.Done():
			return false
		}
	}
}
