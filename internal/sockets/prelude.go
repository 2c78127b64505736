package sockets

import (
	"encoding/hex"
	"fmt"
	"net/http"
	"time"

	"github.com/julofinance/grace/v3/internal/gate"
)

// A server of net/http takes each connection that it is given for a new one.
// Between two requests a connection differs from a new one: other deadlines run,
// and they count from the first bytes of the next request; a POST before it makes
// the server tolerant; another byte limit holds; HTTP/2 can't begin. All of that
// is the server's own knowledge, and differs from version to version. So a
// connection that comes from another process in the middle of its life begins
// with a request of ours, the prelude, which has the method of the last one that
// the client has sent. Our handler answers it, and the answer is not written.
// After that the server is in the same state as its predecessor was.

// PreludeURI is the URI of the prelude. No client knows it.
var PreludeURI = "/" + newSecret()

func newSecret() string {
	var b [16]byte
	readRandom(b[:])
	return hex.EncodeToString(b[:])
}

func prelude(method string) []byte {
	return fmt.Appendf(nil, "%s %s HTTP/1.1\r\nHost: grace\r\nContent-Length: 0\r\n\r\n", method, PreludeURI)
}

var preludeGET, preludePOST = prelude(http.MethodGet), prelude(http.MethodPost)

// A past is what another server hands on about a connection.
type past struct {
	source source
	post   bool          // the last request was a POST
	left   time.Duration // until the read deadline that is set; 0 if none is
}

// past returns the past of a connection that leaves now. t.mu is held.
func (t *Track) past() past {
	p := past{source: sourceIdle, post: t.post}
	switch {
	case t.muted: // it is closed before it was idle again
		p.source = sourceAccept
	case t.phase == phaseNew:
		p.source = sourceFresh
	}
	if !t.Want.IsZero() {
		p.left = max(time.Until(t.Want), time.Millisecond)
	}
	return p
}

// come gives a connection its past, before a server has it.
func (t *Track) come(p past) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.source, t.post = p.source, p.post
	if p.left > 0 {
		t.ownDetour()
		t.until = time.Now().Add(p.left)
	}
}

// A play is what a connection has while the prelude is served.
type play struct {
	stop     chan struct{} // closed when a Read is to end
	stopped  bool
	answered bool
}

// PlayPrelude lets the server read the prelude first, if the connection is one
// that is between two requests. If a wrapper such as a cmux reads before the
// server does, the next request has begun already, and its answer would be the
// one that is not written.
func (t *Track) PlayPrelude() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.source != sourceIdle || len(t.unread) > 0 || t.progress != progressNone || t.reading > 0 {
		return
	}
	t.ownDetour()
	t.muted, t.play = true, &play{stop: make(chan struct{})}
	t.unread = preludeGET // never written to
	if t.post {
		t.unread = preludePOST
	}
}

// playWait is a Read after the prelude: net/http reads while a request is served,
// to notice when the client goes. It takes no byte from the client.
func (t *Track) playWait() (int, error) {
	t.mu.Lock()
	stop := t.play.stop
	t.mu.Unlock()
	<-stop
	return 0, t.Listener.expired
}

// playDeadline ends that Read if the read deadline is one that stops a Read. t.mu
// is held.
func (t *Track) playDeadline() {
	if !t.Want.IsZero() && !t.Want.After(gate.LongAgo) {
		t.stopPlay()
	}
}

func (t *Track) stopPlay() {
	if !t.play.stopped {
		t.play.stopped = true
		close(t.play.stop)
	}
}

// swallow is a Write of the answer to the prelude: it writes nothing.
func (t *Track) swallow(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.play.answered = true
	return len(p), nil
}

// Played notes that the prelude is answered, and the connection idle as it was.
func (t *Track) Played() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.muted, t.play = false, nil
}

// endPlay is called when the connection is closed before Played. The connection
// stays open if the server has only refused to keep it, after
// SetKeepAlivesEnabled(false), say: then it is served as a new one, for one more
// request. t.mu is held.
func (t *Track) endPlay() (stays bool) {
	t.stopPlay()
	return t.play.answered && !t.life.isOver()
}

// continued returns the read deadline d of this server as if it had begun to wait
// when the server before did, whose deadline is known. A new connection has one
// for its first request's header, and one from the same moment for all of that
// request; an idle one has one until the next request begins. t.mu is held.
func (t *Track) continued(d time.Time) time.Time {
	switch t.phase {
	case phaseNew:
		if t.source != sourceFresh || d.IsZero() {
			return d
		}
		if !t.aged {
			t.aged, t.age = true, max(0, d.Sub(t.until))
		}
		return d.Add(-t.age)
	case PhaseIdle:
		if t.source == sourceIdle && !d.IsZero() && t.until.Before(d) {
			d = t.until
		}
		t.until = time.Time{}
		if t.grace == 0 && t.lingers == 0 && t.stays == nil && t.First == nil && t.tls == nil {
			t.Detour = &noDetour // as all others have
		}
	}
	return d
}
