package grace

import "fmt"

// What may wait for a disk or a lock: to open the socket of a listener again, and
// to remove the file of one. None of it is done by the goroutine that owns the
// state, and sockets.mu is not held meanwhile.

// unpark lets l accept again that was closed while the process drained, if the
// drain was called off meanwhile.
func (s *sockets) unpark(l *listener) error {
	if !l.gate.isParked() {
		return nil
	}
	return s.reopen(l)
}

// reopen lets l accept again while this process accepts: after a hand-over that
// was rolled back. If its socket was closed it is opened anew; that may wait for a
// lock and a disk, and no lock of ours is held meanwhile that others need.
func (s *sockets) reopen(l *listener) error {
	l.reopening.Lock()
	defer l.reopening.Unlock()
	if s.openGate(l) {
		return nil
	}
	addr := l.sock.Bound
	if l.sock.Path != "" {
		addr = l.sock.Path // whatever the working directory is now
	}
	inner, err := l.open(addr)
	if err != nil {
		return err
	}
	raw, err := inner.SyscallConn()
	if err == nil {
		err = l.sock.setRaw(raw)
	}
	if err != nil {
		inner.Close()
		return fmt.Errorf("grace: listen %s %s: %w", l.sock.Network, l.sock.Addr, err)
	}
	file := l.sock.socketFile()
	if file.path != "" {
		file.dev, file.ino, _ = fileID(file.path)
	}
	if !s.replace(l, inner, file) { // it ends meanwhile
		file.remove()
		l.sock.closeListener(inner)
	}
	return nil
}

// replace gives l a new socket to accept on; false if it is to accept no more.
func (s *sockets) replace(l *listener, inner acceptor, file socketFile) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.open {
		return false
	}
	l.sock.Dev, l.sock.Ino = file.dev, file.ino
	l.replace(inner)
	l.gate.set(gateOpen)
	l.sock.yielded = false
	return true
}

// openGate opens the gate of l, if this process accepts at all; false if its
// socket must be opened anew before.
func (s *sockets) openGate(l *listener) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open && l.isShut() {
		return false
	}
	if s.open {
		l.gate.set(gateOpen)
	}
	return true
}

// endPath is endAccept of a socket that has a path. While the disk hangs the
// socket accepts as before.
func (s *sockets) endPath(sock *socket, file socketFile) {
	if l := sock.listener; l != nil {
		l.reopening.Lock()
		defer l.reopening.Unlock()
	}
	file.remove()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ending--
	if !s.open { // else rolled back meanwhile
		sock.gate.set(gateFinishing)
	}
	s.check()
}

// isEnding says whether endPath is still to come for some.
func (s *sockets) isEnding() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ending > 0
}
