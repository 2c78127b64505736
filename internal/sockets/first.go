package sockets

// The first bytes of a connection are kept to be compared with the first request.

// provable is how many are kept: a method and the beginning of a path.
const provable = 16

// KeepFirst lets connections that come keep their first bytes.
func (s *live) KeepFirst(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.first = on
}

// keep keeps the first bytes that are read from the connection.
func (d *Detour) keep(p []byte) {
	if d.First != nil && len(d.First) == 0 {
		d.First = append(d.First, p[:min(len(p), provable)]...)
	}
}

// TakeFirst returns what was kept; "" if nothing was, or it was returned before.
func (t *Track) TakeFirst() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	first := string(t.First)
	if first != "" {
		t.Detour.First = nil // the next request begins otherwise
	}
	return first
}
