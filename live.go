package grace

import (
	"net"
	"sync"
)

// live are the connections of a listener that are open, hijacked ones too: a
// list, so that no more than a few pointers change under the lock.
type live struct {
	mu       sync.Mutex
	first    *track
	n        int
	hijacked int      // of them
	watchers []func() // called when one is gone, or hijacked

	// byAddr is there once somebody has looked for a connection. The keys are what
	// RemoteAddr and LocalAddr return: pointers of the connection's own, which most
	// wrappers hand through, and net/http gives one of them to a handler.
	byAddr map[net.Addr]*track
}

// add adds t, in the place of old if that is not nil.
func (s *live) add(t, old *track) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if old != nil {
		s.unlink(old)
	}
	t.listed = true
	t.after = s.first
	if s.first != nil {
		s.first.before = t
	}
	s.first = t
	s.n++
	if s.byAddr != nil {
		s.index(t)
	}
}

func (s *live) index(t *track) {
	s.byAddr[t.inner.RemoteAddr()] = t
	s.byAddr[t.inner.LocalAddr()] = t
}

func (s *live) unlink(t *track) {
	if !t.listed {
		return
	}
	if t.before != nil {
		t.before.after = t.after
	} else {
		s.first = t.after
	}
	if t.after != nil {
		t.after.before = t.before
	}
	t.before, t.after, t.listed = nil, nil, false
	s.n--
	if s.byAddr != nil {
		delete(s.byAddr, t.inner.RemoteAddr())
		delete(s.byAddr, t.inner.LocalAddr())
	}
}

// find gives the connection whose RemoteAddr or LocalAddr has returned this very
// address.
func (s *live) find(addr net.Addr) *track {
	switch addr.(type) {
	case *net.TCPAddr, *net.UnixAddr:
	default: // a wrapper's own, which may not even be a map's key
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byAddr == nil {
		s.byAddr = make(map[net.Addr]*track, 2*s.n)
		for t := s.first; t != nil; t = t.after {
			s.index(t)
		}
	}
	return s.byAddr[addr]
}

func (s *live) remove(t *track, hijacked bool) {
	s.mu.Lock()
	s.unlink(t)
	if hijacked {
		s.hijacked--
	}
	watchers := s.watchers
	s.mu.Unlock()
	for _, f := range watchers {
		f()
	}
}

// hijack counts one of the connections as hijacked.
func (s *live) hijack() {
	s.mu.Lock()
	s.hijacked++
	watchers := s.watchers
	s.mu.Unlock()
	for _, f := range watchers {
		f()
	}
}

func (s *live) count(hijacked bool) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if hijacked {
		return s.n
	}
	return s.n - s.hijacked
}

// watch lets f be called when a connection is gone.
func (s *live) watch(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watchers = append(s.watchers, f)
}

func (s *live) all() []*track {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*track, 0, s.n)
	for t := s.first; t != nil; t = t.after {
		all = append(all, t)
	}
	return all
}
