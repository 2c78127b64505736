package serve

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/julofinance/grace/v3/internal/sockets"
)

// A host is what all servers of a process have in common. Its fields are set before
// the first server is given to it.
type Host struct {
	Socks     *sockets.Set
	Log       *slog.Logger
	Stopping  context.Context // ends when this process begins to stop
	IdleGrace time.Duration
	Move      bool // connections may move to a new process, and come from an old one
	MoveTLS   bool // those over TLS 1.3 as well

	// Took is called when a server takes moved connections of one more protocol on l.
	Took func(l *sockets.Listener, protocol string)

	rule   idleRule
	tls    tlsRule
	drains drainSignal
	now    func() time.Time // of session tickets; nil: time.Now

	barred atomic.Bool // see Bar

	mu      sync.Mutex
	servers []Drainer // guarded by mu
	ended   bool      // also those that come from now on; guarded by mu
	lame    bool      // see LameDuck; guarded by mu

	ticketsMu sync.Mutex
	secrets   map[string]*ticketSecrets // by addressKey; guarded by ticketsMu

	streams running // the handlers of HTTP/2
}

// All returns the servers, and what finishes the sockets' queues.
func (h *Host) All() []Drainer {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]Drainer{queues{h.Socks}}, h.servers...)
}

// Last is All, and lets each server that comes later be ended at once.
func (h *Host) Last() []Drainer {
	h.mu.Lock()
	h.ended = true
	h.mu.Unlock()
	return h.All()
}

// Add adds a server. One that comes when the others were ended is ended as well: a
// stop may come while the program still sets itself up.
func (h *Host) Add(s Drainer) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.add(s)
}

// add is Add. mu is held.
func (h *Host) add(s Drainer) {
	h.servers = append(h.servers, s)
	if h.ended {
		go s.End()
	}
}

// Reopened is called when this process accepts again, after another one has. It must not be
// called by the goroutine that owns the state.
func (h *Host) Reopened() {
	for _, d := range h.All() {
		if s, ok := d.(interface{ reopened() }); ok {
			s.reopened()
		}
	}
}

// acceptsOn reports whether this process accepts on all of these: the program has closed none.
func (h *Host) acceptsOn(own []*sockets.Listener) bool {
	return !slices.ContainsFunc(own, func(l *sockets.Listener) bool { return !h.Socks.Accepts(l) })
}

// Bar sets whether handlers are not to be called any more: another process has what they
// need. What has come here all the same, since no other process took it, is answered with
// 503.
func (h *Host) Bar(on bool) { h.barred.Store(on) }

// CutLeft cuts off what d has left when its time was up, and waits a moment for handlers
// to notice.
func (h *Host) CutLeft(d *Drain) {
	select {
	case <-d.TimeUp():
	default:
		return
	}
	ctx, cancel := context.WithTimeout(d.ctx, cutPatience)
	defer cancel()
	h.Socks.Cut(ctx)
	h.streams.wait(ctx)
}

// cutPatience is how long a handler may take to return when its connection was cut off.
const cutPatience = time.Second

// takes records that connections of this protocol may be moved to l.
func (h *Host) takes(l *sockets.Listener, protocol string) {
	if h.Move && l.Take(protocol) {
		h.Took(l, protocol)
	}
}
