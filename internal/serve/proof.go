package serve

import (
	"net"
	"net/http"
	"strings"

	"github.com/julofinance/grace/v3/internal/sockets"
)

// What a server speaks that serves one of our listeners through a wrapper can't
// be seen: a tls.Listener may be in a netutil.LimitListener, which hides it, and
// others want a header before the first request. So a new process promises to
// take moved connections there only when it has seen that a request came to its
// server just as the client has sent it: as the very first bytes of a connection.
//
// Of each connection the first request is looked at. If it is not what the client
// has sent, the wrapper does something that a moved connection would not have
// gone through: nothing is promised then, also if others come as they were sent.
// Connections for which nothing is promised are finished by the old process, and
// nothing is lost; so the looking also ends after many requests from which
// nothing can be concluded. Once it has ended nothing is looked at any more.

const (
	// vainProofs is how many requests may say nothing.
	vainProofs = 1000
)

// doubt notes that nothing is known yet of what is spoken on these.
func (s *httpServer) doubt(own []*sockets.Listener) {
	if len(own) == 0 || !s.host.Move {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range own {
		l.Live.KeepFirst(true)
		s.doubted = append(s.doubted, l)
	}
	s.doubts.Store(true)
}

// prove is called with an HTTP/1 request while there are doubts.
func (s *httpServer) prove(r *http.Request) {
	addr, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	t := s.conns.find(addr)
	v := unproven
	if t != nil {
		v = beganWith(t, r.Method+" "+r.RequestURI+" HTTP/1.")
	}
	if v == unproven {
		s.tryInVain()
		return
	}
	s.endDoubts(func(l *sockets.Listener) bool { return l == t.Listener })
	if v == proven {
		s.host.takes(t.Listener, sockets.ProtocolHTTP1)
	}
}

// tryInVain ends all doubts after too many requests.
func (s *httpServer) tryInVain() {
	s.mu.Lock()
	s.vain++
	over := s.vain >= vainProofs
	s.mu.Unlock()
	if over {
		s.endDoubts(func(*sockets.Listener) bool { return true })
	}
}

// endDoubts notes that what is spoken on these is known, or never will be.
func (s *httpServer) endDoubts(these func(*sockets.Listener) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	left := s.doubted[:0:0]
	for _, l := range s.doubted {
		if these(l) {
			l.Live.KeepFirst(false)
		} else {
			left = append(left, l)
		}
	}
	s.doubted = left
	s.doubts.Store(len(left) > 0)
}

// A verdict is what one request shows of its listener.
type verdict int

const (
	unproven verdict = iota // nothing
	proven                  // it came just as the client has sent it
	disproven
)

// beganWith judges the first request of a connection, which begins with this
// line, by the first bytes that were kept, which may be more or fewer. If they
// are less than a method, a space and a slash nothing is concluded.
func beganWith(t *sockets.Track, line string) verdict {
	first := t.TakeFirst()
	if first == "" {
		return unproven
	}
	switch {
	case strings.HasPrefix(first, "OPTIONS *"), strings.HasPrefix(first, "\r"), strings.HasPrefix(first, "\n"):
		return unproven // net/http has answered, or left out, what came first
	case !strings.HasPrefix(line, first) && !strings.HasPrefix(first, line):
		return disproven
	case !strings.Contains(first, " /"):
		return unproven
	}
	return proven
}
