package grace

import (
	"github.com/julofinance/grace/v3/internal/sockets"
	"net"
	"sync"
	"sync/atomic"
)

// A connSet is all that a server drains: its listeners of ours, and what came
// through them.
type connSet struct {
	mu        sync.Mutex
	listeners []*sockets.Listener
	changed   chan struct{} // closed when something may have ended

	// waits says that somebody waits for changed. He says so before he looks at
	// what has ended, and what ends does before it looks here.
	waits atomic.Bool
}

// listens adds the listeners of ours that ln is, or wraps. Wrappers hand Addr
// through.
func (s *connSet) listens(u *Upgrader, ln net.Listener) (found []*sockets.Listener) {
	if l, ok := ln.(*sockets.Listener); ok {
		found = []*sockets.Listener{l}
	} else {
		found = u.socks.Listeners(ln.Addr())
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
func (u *Upgrader) listensWith(s *connSet, ln net.Listener) []*sockets.Listener {
	found := s.listens(u, ln)
	if len(found) == 0 {
		u.log.Warn("grace: a server listens on a socket that is not one of Listen's: no new process will get it", "address", ln.Addr())
	}
	return found
}

func (s *connSet) all() []*sockets.Listener {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.listeners
}

// find gives the connection with this address, see live.find.
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

// left counts what is not over yet: connections, hijacked ones or not, and
// Listeners through which some may still come.
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

// quiet says whether no connection comes any more.
func (s *connSet) quiet() bool {
	for _, l := range s.all() {
		if !l.Gate.IsQuiet() {
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
