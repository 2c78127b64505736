package grace

import (
	"net"
	"net/http"
	"strings"
)

// What a server speaks that serves one of our listeners through a wrapper is not
// to be seen: a tls.Listener may be in a netutil.LimitListener, which hides it,
// and others want a header before the first request. So a new process promises
// to take moved connections there when it has seen that a request came to its
// server just as the client has sent it: as the very first bytes of a connection.

// provable is how many bytes prove it: a method and the beginning of a path.
const provable = 16

// doubt says that nothing is known yet of what is spoken on these.
func (s *httpServer) doubt(own []*listener) {
	if len(own) == 0 || !s.u.opt.move {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range own {
		l.live.keepFirst(true)
		s.doubted = append(s.doubted, l)
	}
	s.doubts.Store(true)
}

// prove is called with a request while there are doubts.
func (s *httpServer) prove(r *http.Request) {
	addr, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	t := s.conns.find(addr)
	if t == nil || r.ProtoMajor != 1 || !t.beganWith(r.Method+" "+r.RequestURI+" HTTP/1.") {
		return
	}
	s.mu.Lock()
	left := s.doubted[:0:0]
	for _, l := range s.doubted {
		if l != t.l {
			left = append(left, l)
		}
	}
	s.doubted = left
	s.doubts.Store(len(left) > 0)
	s.mu.Unlock()
	t.l.live.keepFirst(false)
	s.u.takes(t.l, protocolHTTP1)
}

// keepFirst lets connections that come keep their first bytes.
func (s *live) keepFirst(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.first = on
}

// keep keeps what was read first of all.
func (d *detour) keep(p []byte) {
	if d.first != nil && len(d.first) == 0 {
		d.first = append(d.first, p[:min(len(p), provable)]...)
	}
}

// beganWith says whether the first bytes are those of this line, which may be
// longer or shorter. Of less than a method, a space and a slash nothing is
// concluded.
func (t *track) beganWith(line string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	first := string(t.first)
	return strings.Contains(first, " /") && (strings.HasPrefix(line, first) || strings.HasPrefix(first, line))
}
