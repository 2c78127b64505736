package grace

import (
	"net"
	"sync"
	"sync/atomic"
)

// A connSet is all that a server drains: its listeners of ours, and what came
// through them.
type connSet struct {
	mu        sync.Mutex
	listeners []*listener
	changed   chan struct{} // closed when something may have ended

	// waits says that somebody waits for changed. He says so before he looks at
	// what has ended, and what ends does before it looks here.
	waits atomic.Bool
}

// listens adds the listeners of ours that ln is, or wraps. Wrappers hand Addr
// through.
func (s *connSet) listens(u *Upgrader, ln net.Listener) (found []*listener) {
	if l, ok := ln.(*listener); ok {
		found = []*listener{l}
	} else {
		found = u.socks.listeners(ln.Addr())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range found {
		s.listeners = append(s.listeners, l)
		l.gate.Watch(s.check)
		l.live.watch(s.check)
	}
	return found
}

// listensWith adds ln to the listeners of a server.
func (u *Upgrader) listensWith(s *connSet, ln net.Listener) []*listener {
	found := s.listens(u, ln)
	if len(found) == 0 {
		u.log.Warn("grace: a server listens on a socket that is not one of Listen's: no new process will get it", "address", ln.Addr())
	}
	return found
}

func (s *connSet) all() []*listener {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.listeners
}

// find gives the connection with this address, see live.find.
func (s *connSet) find(addr net.Addr) *track {
	for _, l := range s.all() {
		if t := l.live.find(addr); t != nil {
			return t
		}
	}
	return nil
}

func (s *connSet) tracks() (all []*track) {
	for _, l := range s.all() {
		all = append(all, l.live.all()...)
	}
	return all
}

// left counts what is not over yet: connections, hijacked ones or not, and
// listeners through which some may still come.
func (s *connSet) left(hijacked bool) (n int) {
	for _, l := range s.all() {
		if !l.gate.IsQuiet() {
			n++
		}
	}
	return n + s.open(hijacked)
}

// open counts the connections that are not over yet.
func (s *connSet) open(hijacked bool) (n int) {
	for _, l := range s.all() {
		n += l.live.count(hijacked)
	}
	return n
}

// quiet says whether no connection comes any more.
func (s *connSet) quiet() bool {
	for _, l := range s.all() {
		if !l.gate.IsQuiet() {
			return false
		}
	}
	return true
}

// check wakes who waits for an end.
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

// wait returns true when ended says so, which is asked again at each change;
// false if the drain's time is up or it was called off before.
func (s *connSet) wait(d *drain, ended func() bool) bool {
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
