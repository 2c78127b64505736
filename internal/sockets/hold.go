package sockets

// Hold lets connections that move wait until Send is called: the new process does not
// accept yet. Those that wait are not in their listener's Live; if Stop comes first, they
// are served on, and are there again.
func (m *Mover) Hold() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.held = true
}

// Send sends those that wait, and calls settled when none is on its way any more, there or back, in a
// goroutine of its own.
func (m *Mover) Send(settled func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.held, m.settled = false, settled
	m.flush()
	m.settle()
}

// settle is called when less may be on its way than before. m.mu is held.
func (m *Mover) settle() {
	if m.settled != nil && len(m.queue)+len(m.sent)+m.back == 0 {
		go m.settled()
		m.settled = nil
	}
}
