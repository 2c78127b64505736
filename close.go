package grace

import "net"

// How a connection ends: by Close, on its way to another process, or cut off.

// close is Close: of a connection that is to leave, the way to the mover.
func (t *track) close() error {
	t.mu.Lock()
	was, away, leaving, m, hijacked := t.closed, t.away, t.leaving, t.mover, t.phase == phaseHijacked
	if t.muted {
		leaving, m = t.endPlay(), nil
	}
	lingers := t.lingers > 0 && !hijacked && !was && !away && !leaving
	t.closed, t.away = true, away || leaving
	t.mu.Unlock()
	if away {
		return net.ErrClosed // its number may be another file's by the time it is sent
	}
	if leaving && !was {
		if m == nil || !m.move(t, nil) {
			t.l.takeBack(t, nil, m, false)
		}
		return nil
	}
	if lingers {
		go t.linger(func() { t.l.live.remove(t, false) })
		return nil
	}
	if !was {
		t.l.live.remove(t, hijacked)
	}
	return t.closeInner()
}

// closeInner closes the descriptor, and the connection even if new has a copy.
func (t *track) closeInner() error {
	if t.lent {
		if c, ok := t.inner.(interface {
			CloseRead() error
			CloseWrite() error
		}); ok {
			c.CloseRead()
			c.CloseWrite()
		}
	}
	return t.inner.Close()
}

// cut closes a connection that is left when the drain's time is up.
func (t *track) cut() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.muted {
		t.endPlay()
	}
	if !t.away {
		t.free()
		t.closeInner()
	}
}

// freeToClose is free, before somebody else closes the connection.
func (t *track) freeToClose() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.away {
		t.free()
	}
}
