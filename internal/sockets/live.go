package sockets

import (
	"net"
	"slices"
	"sync"
)

// live are the connections of a listener that are open, hijacked ones too. Each
// knows its place, so that removing one changes no more than one other.
type live struct {
	mu       sync.Mutex // guards the following, and the place of each track
	tracks   []*Track
	hijacked int       // of them
	watchers []*func() // called when one is gone, or hijacked; never changed, but replaced

	// The fields with which the track of a new connection begins. They are here so
	// that code which changes them, and then goes through all connections, misses
	// none.
	phase  phase
	mover  *Mover
	ending bool
	first  bool // the first bytes of a connection are kept

	// byAddr is made when a connection is looked for the first time. The keys are
	// what RemoteAddr and LocalAddr return: pointers of the connection's own. Most
	// wrappers return them too, and net/http gives one of them to a handler.
	byAddr map[net.Addr]*Track
}

// add adds t, in the place of old if that is not nil.
func (s *live) add(t, old *Track) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t.phase, t.ending = s.phase, s.ending
	if s.mover != t.stays {
		t.Mover = s.mover
	}
	if s.first {
		t.ownDetour()
		t.Detour.First = make([]byte, 0, provable)
	}
	if old != nil {
		s.unlink(old)
	}
	s.tracks = append(s.tracks, t)
	t.place = int32(len(s.tracks))
	if s.byAddr != nil {
		s.index(t)
	}
}

// Adopt sets the phase in which connections begin.
func (s *live) Adopt(p phase) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.phase = p
}

// release sets the mover with which connections begin, and returns those that
// have begun.
func (s *live) release(m *Mover, ending bool) []*Track {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mover, s.ending = m, ending
	return slices.Clone(s.tracks)
}

func (s *live) index(t *Track) {
	s.byAddr[t.Inner.RemoteAddr()] = t
	s.byAddr[t.Inner.LocalAddr()] = t
}

func (s *live) unlink(t *Track) {
	if t.place == 0 {
		return
	}
	end := len(s.tracks) - 1
	last := s.tracks[end]
	s.tracks[t.place-1], last.place = last, t.place
	s.tracks[end], t.place = nil, 0
	s.tracks = s.tracks[:end]
	if s.byAddr != nil {
		delete(s.byAddr, t.Inner.RemoteAddr())
		delete(s.byAddr, t.Inner.LocalAddr())
	}
}

// Find returns the connection whose RemoteAddr or LocalAddr has returned this
// very address.
func (s *live) Find(addr net.Addr) *Track {
	switch addr.(type) {
	case *net.TCPAddr, *net.UnixAddr:
	default: // a wrapper's own, which may not even be a map's key
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byAddr == nil {
		s.byAddr = make(map[net.Addr]*Track, 2*len(s.tracks))
		for _, t := range s.tracks {
			s.index(t)
		}
	}
	return s.byAddr[addr]
}

func (s *live) remove(t *Track, hijacked bool) {
	s.mu.Lock()
	s.unlink(t)
	if hijacked {
		s.hijacked--
	}
	watchers := s.watchers
	s.mu.Unlock()
	for _, f := range watchers {
		(*f)()
	}
}

// Hijack counts one of the connections as hijacked.
func (s *live) Hijack() {
	s.mu.Lock()
	s.hijacked++
	watchers := s.watchers
	s.mu.Unlock()
	for _, f := range watchers {
		(*f)()
	}
}

func (s *live) Count(hijacked bool) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if hijacked {
		return len(s.tracks)
	}
	return len(s.tracks) - s.hijacked
}

// Watch lets f be called when a connection is gone, until the function that it returns is
// called.
func (s *live) Watch(f func()) (unwatch func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watchers = append(slices.Clip(s.watchers), &f)
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.watchers = slices.DeleteFunc(slices.Clone(s.watchers), func(other *func()) bool { return other == &f })
	}
}

func (s *live) All() []*Track {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.tracks)
}
