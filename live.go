package grace

import (
	"net"
	"sync"
)

// live are the connections of a listener that are open, hijacked ones too. The
// key is what RemoteAddr returns: a pointer of the connection's own, which most
// wrappers hand through, so that a wrapped connection is found by it.
type live struct {
	mu       sync.Mutex
	conns    map[net.Addr]*track
	hijacked int      // of conns
	watchers []func() // called when one is gone, or hijacked
}

func (s *live) add(t *track) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns == nil {
		s.conns = map[net.Addr]*track{}
	}
	s.conns[t.inner.RemoteAddr()] = t
}

func (s *live) find(c net.Conn) *track {
	addr := c.RemoteAddr()
	switch addr.(type) {
	case *net.TCPAddr, *net.UnixAddr:
	default: // a wrapper's own, which may not even be a map's key
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conns[addr]
}

func (s *live) remove(t *track, hijacked bool) {
	s.mu.Lock()
	delete(s.conns, t.inner.RemoteAddr())
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
		return len(s.conns)
	}
	return len(s.conns) - s.hijacked
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
	all := make([]*track, 0, len(s.conns))
	for _, t := range s.conns {
		all = append(all, t)
	}
	return all
}
