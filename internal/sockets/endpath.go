package sockets

import "github.com/julofinance/grace/v3/internal/gate"

// endPath is EndAccept for a socket that has a path: no new client is to come. It
// may wait for a disk. So the goroutine that owns the state does not do it, and
// Set.mu is not held meanwhile; while the disk hangs the socket accepts as
// before. If a roll back may need the file, it is kept under another name.
func (s *Set) endPath(sock *Socket, mayReturn bool) {
	if l := sock.Listener; l != nil {
		l.reopening.Lock()
		defer l.reopening.Unlock()
	}
	switch {
	case !mayReturn:
		sock.unlink()
	case !s.isOpen(): // else rolled back already: clients are to find the file
		sock.hide()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ending--
	if s.closed { // closed meanwhile: nothing is shown again
		go sock.forget()
	}
	if !s.open {
		sock.gate.Set(gate.Finishing)
	} else { // rolled back meanwhile
		go sock.show()
	}
	s.check()
}

func (s *Set) isOpen() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open
}

// isEnding reports whether endPath has not finished yet for some socket.
func (s *Set) isEnding() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ending > 0
}
