package sockets

import (
	"net"
	"time"
)

// How a connection ends: by Close, on its way to another process, or cut off.

// close is Close. For a connection that is to leave, it gives it to the mover.
func (t *Track) close() error {
	t.mu.Lock()
	was, m, hijacked, shared := t.life, t.Mover, t.phase == PhaseHijacked, t.origin.has(originShared)
	moves := was == lifeLeaving
	if t.muted {
		moves, m = t.endPlay(), nil
	}
	lingers := t.lingers > 0 && !hijacked && was == lifeOpen && !moves
	switch {
	case moves:
		t.life = lifeMoving
	case was != lifeMoving:
		t.life = lifeClosed
	}
	t.mu.Unlock()
	if was == lifeMoving {
		return net.ErrClosed // the mover may have closed the descriptor, and its number may be another file's
	}
	if moves {
		if m == nil || !m.move(t, nil) {
			t.Listener.TakeBack(t, nil, m, false)
		}
		return nil
	}
	if lingers {
		go t.linger(shared, func() { t.Listener.Live.remove(t, false) })
		return nil
	}
	if was != lifeClosed {
		t.Listener.Live.remove(t, hijacked)
	}
	return t.closeInner(shared)
}

// closeInner closes the descriptor, and ends the connection even if the new
// process has a copy of it: shared is originShared.
func (t *Track) closeInner(shared bool) error {
	if shared {
		if c, ok := t.Inner.(interface {
			CloseRead() error
			CloseWrite() error
		}); ok {
			c.CloseRead()
			c.CloseWrite()
		}
	}
	return t.Inner.Close()
}

// Cut closes a connection that is left when the drain's time is up.
func (t *Track) Cut() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.muted {
		t.endPlay()
	}
	if t.life != lifeMoving {
		t.free()
		t.closeInner(t.origin.has(originShared))
	}
}

// FreeToClose is free, for a connection that other code is about to close.
func (t *Track) FreeToClose() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.life != lifeMoving {
		t.free()
	}
}

// Bid notes that the answer that is on its way is the connection's last, and how
// long to linger after it.
func (t *Track) Bid(lingers time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ownDetour()
	t.lingers = lingers
}

// linger ends the connection for its client, and closes it when the client has
// closed its end too, or after a while.
func (t *Track) linger(shared bool, then func()) {
	defer then()
	defer t.closeInner(shared)
	c, ok := t.Inner.(interface{ CloseWrite() error })
	if !ok || c.CloseWrite() != nil {
		return
	}
	t.Inner.SetReadDeadline(time.Now().Add(t.lingers))
	for b := make([]byte, 4<<10); ; {
		if _, err := t.Inner.Read(b); err != nil {
			return
		}
	}
}
