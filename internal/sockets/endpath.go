package sockets

import "github.com/julofinance/grace/v3/internal/gate"

// endPath is EndAccept of a socket that has a path: nobody new is to come. It may
// wait for a disk, so that it is not done by the goroutine that owns the state, nor
// is sockets.mu held meanwhile; while the disk hangs the socket accepts as before.
// One that may be rolled back is kept aside.
func (s *Set) endPath(sock *Socket, mayReturn bool) {
	if l := sock.Listener; l != nil {
		l.reopening.Lock()
		defer l.reopening.Unlock()
	}
	if mayReturn {
		sock.hide()
	} else {
		sock.unlink()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ending--
	if s.closed { // meanwhile: nothing comes back
		go sock.forget()
	}
	if !s.open {
		sock.gate.Set(gate.Finishing)
	} else { // rolled back meanwhile
		go sock.show()
	}
	s.check()
}

// isEnding says whether endPath is still to come for some.
func (s *Set) isEnding() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ending > 0
}
