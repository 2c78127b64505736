package serve

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/julofinance/grace/v3/internal/sockets"
)

// A foreignServer is one that is not net/http's. The fields are those of the Server of
// package grace, which says what each must do.
type ForeignServer struct {
	Listener net.Listener
	Serve    func(net.Listener) error
	Shutdown func(context.Context) error
	Protocol string
}

// Other returns what serves s.
func (h *Host) Other(s ForeignServer) (execute func() error) {
	o := &otherServer{
		host: h, ForeignServer: s, finished: make(chan struct{}), resumed: make(chan struct{}), closed: make(chan struct{}), wanted: make(chan struct{}),
	}
	if _, ours := s.Listener.(*sockets.Listener); !ours {
		o.hall = newHall(s.Listener, o.conns.check)
	}
	for _, l := range h.listensWith(&o.conns, s.Listener) {
		if s.Protocol != "" {
			l.Live.Adopt(sockets.PhaseOther)
			h.takes(l, s.Protocol)
		}
	}
	h.Add(o)
	return o.serve
}

// An otherServer drains one that is not net/http's.
type otherServer struct {
	ForeignServer
	host     *Host
	conns    connSet
	hall     *hall // nil if Listener is ours itself
	finished chan struct{}

	draining atomic.Bool // changed with mu held

	mu       sync.Mutex // guards the following
	told     bool       // this drain has called Shutdown
	shuts    int        // calls of Shutdown that have not returned; the listeners are spared meanwhile
	shutting bool       // there was one since Serve was called: it may be what ends Serve
	again    bool       // Serve was called while there was one
	turn     *turn
	resumed  chan struct{} // closed when the next drain is called off
	closed   chan struct{} // closed when Shutdown has closed the listener
	after    chan struct{} // resumed of that moment
	wanted   chan struct{} // closed when Serve is to be called again: a connection waits
}

func (s *otherServer) serve() error {
	if s.hall != nil {
		defer s.hall.end()
	}
	for again := false; ; again = true {
		select {
		case <-s.finished: // before it has begun
			return nil
		default:
		}
		ln, closed, wanted := s.begin()
		ended := make(chan error, 1) // by the program itself
		go func() {
			if err := s.Serve(ln); s.endsByItself(closed) {
				ended <- err
			}
		}()
		var finished chan struct{}
		if s.hall != nil { // a wrapper may not notice the end of our listener
			finished = s.finished
		}
		select {
		case <-finished:
			return nil
		case <-closed: // it will return, maybe when all its connections are gone
		case err := <-ended:
			return s.ownError(again, ln, err)
		}
		select {
		case err := <-ended:
			return s.ownError(again, ln, err)
		case <-s.finished:
			return nil
		case <-s.calledOff():
		case <-wanted:
		}
	}
}

// ownError is the error of a Serve that has ended by itself. again: it was not the first.
func (s *otherServer) ownError(again bool, ln callsListener, err error) error {
	if err == nil || !again || ln.isAsked() {
		return err
	}
	// A server that was shut down, as gRPC's, does not accept once more.
	return fmt.Errorf("grace: Serve was called again after a roll back, and accepts nothing: let it make a new server each time, since the old one can't serve twice: %w", err)
}

// calledOff returns the channel that is closed when the drain in which Serve has ended is
// called off: that of an earlier one has called Serve already.
func (s *otherServer) calledOff() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.after
}

// endsByItself is called when Serve has returned, and reports whether that was for a reason
// of its own. Else nothing accepts any more, until Serve is called again.
func (s *otherServer) endsByItself(closed chan struct{}) bool {
	drained := s.draining.Load() // now: Resume holds mu
	s.mu.Lock()
	defer s.conns.check()
	defer s.mu.Unlock()
	// With mu held: either reopened comes later, and finds closed closed, or this finds that
	// no other process serves any more.
	stops := s.host.Stopping.Err() != nil || s.host.Socks.Keep(nil)
	if closed != s.closed { // Serve was called again
		return false
	}
	// That closed is closed does not tell: Serve itself closes its listener when it fails, as
	// that of net/http and gRPC does.
	if !stops && !drained && !s.draining.Load() && !s.shutting {
		return true
	}
	s.close(closed)
	switch {
	case drained && !s.draining.Load(): // the drain was called off right now
		s.want()
	case s.shutting && s.shuts == 0 && s.isNeeded(): // a late Shutdown, which has returned by now
		s.want()
	}
	return false
}

// A callsListener is the listener of one call of Serve.
type callsListener interface {
	net.Listener
	isAsked() bool // whether Accept was called
}

// begin opens again what a Shutdown has closed, and returns what Serve is to
// serve.
func (s *otherServer) begin() (ln callsListener, closed, wanted chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed, s.wanted = make(chan struct{}), make(chan struct{})
	s.again = s.shuts > 0
	s.shutting = s.again
	closed, wanted = s.closed, s.wanted
	for _, l := range s.conns.all() {
		s.host.Socks.Unpark(l)
	}
	if s.hall != nil {
		return s.hall.open(func() { s.onClose(closed) }), closed, wanted
	}
	s.turn = &turn{Listener: s.Listener.(*sockets.Listener)}
	return s.turn, closed, wanted
}

// onClose: the listener that begin has given together with closed accepts nothing
// any more.
func (s *otherServer) onClose(closed chan struct{}) {
	s.mu.Lock()
	s.close(closed)
	s.mu.Unlock()
	s.conns.check()
}

// close closes closed, once. s.mu is held.
func (s *otherServer) close(closed chan struct{}) {
	select {
	case <-closed:
		return
	default:
		close(closed)
	}
	if closed == s.closed {
		s.after = s.resumed
		if s.turn != nil {
			s.turn.over.Store(true)
		}
		s.goOn()
	}
}

// goOn lets Serve be called again if the Shutdown of an earlier drain, which still runs, has
// ended it, unless the present drain has called Shutdown: what is queued is to be accepted
// first. If that one does it once more, Serve is called when it has returned. s.mu is held.
func (s *otherServer) goOn() {
	if s.shuts > 0 && !s.again && s.isNeeded() {
		s.want()
	}
}

// isNeeded reports whether Serve is to be called again if a Shutdown of an earlier drain has
// ended it. s.mu is held.
func (s *otherServer) isNeeded() bool {
	if s.draining.Load() || s.host.Stopping.Err() != nil {
		return !s.told && !s.quiet()
	}
	return true
}

// onSpared: Shutdown has closed our listener itself, which is parked. If it is so no more,
// Serve has ended by that, and was called again right now.
func (s *otherServer) onSpared() {
	s.mu.Lock()
	if slices.ContainsFunc(s.conns.all(), func(l *sockets.Listener) bool { return l.Gate.IsParked() }) {
		s.close(s.closed)
	}
	s.mu.Unlock()
	s.conns.check()
}

// quiet reports whether no connection comes any more.
func (s *otherServer) quiet() bool {
	return s.conns.quiet() && (s.hall == nil || s.hall.holds.Load() == 0)
}

// stranded reports whether a connection waits to be accepted though the listener
// was closed: one that could not be moved after all, or that was accepted when
// Shutdown was called.
func (s *otherServer) stranded() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.closed:
	default:
		return false
	}
	if s.hall != nil && s.hall.holds.Load() > 0 {
		return true
	}
	for _, l := range s.conns.all() {
		if l.Gate.HasInjected() {
			return true
		}
	}
	return false
}

// serveOn lets Serve be called again, for those that are stranded.
func (s *otherServer) serveOn() {
	for _, l := range s.conns.all() {
		s.host.Socks.UnparkGiven(l)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.want()
}

// want lets Serve be called again. s.mu is held.
func (s *otherServer) want() {
	select {
	case <-s.wanted:
	default:
		close(s.wanted)
	}
}

func (s *otherServer) Drain(d *Drain) Report {
	if d.cancelled() { // before a client is told
		return Report{}
	}
	begun := len(s.conns.tracks()) // before the first of them is told
	s.mu.Lock()
	s.draining.Store(true)
	s.told = false
	select {
	case <-s.closed:
		s.goOn()
	default:
	}
	s.mu.Unlock()
	s.Offer(d.Mover)
	ctx, cancel := context.WithCancel(d.ctx)
	defer cancel()
	go func() {
		select {
		case <-d.cut:
			cancel()
		case <-ctx.Done():
		}
	}()
	// What waits to be accepted comes first: Shutdown may close the listener.
	// A connection that an Accept is just returning is counted neither there nor here for a
	// moment. So what was seen once counts, and Shutdown is told again if it was not called.
	for s.Shutdown != nil && s.conns.wait(d, s.quiet) {
		s.setTold(true)
		var skipped atomic.Bool
		go s.shut(ctx, d, &skipped)
		stranded := false
		s.conns.wait(d, func() bool {
			stranded = stranded || s.stranded()
			return stranded || skipped.Load() || s.conns.left(true) == 0
		})
		switch {
		case d.cancelled():
		case stranded:
			s.serveOn()
			continue
		case skipped.Load():
			s.setTold(false)
			continue
		}
		break
	}
	s.conns.wait(d, func() bool { return s.conns.left(true) == 0 })
	if d.cancelled() {
		d.back(s)
		return Report{}
	}
	cut := s.conns.open(true)
	return Report{Finished: max(0, begun-cut), Cut: cut}
}

func (s *otherServer) setTold(told bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.told = told
}

// shut calls Shutdown, unless a connection has come meanwhile: then skipped is set. The
// listeners are spared: they are not closed for good, since the upgrade may be rolled back
// meanwhile. Shutdown may notice that late, and close them after that: then Serve is called
// once more, also in another drain.
func (s *otherServer) shut(ctx context.Context, d *Drain, skipped *atomic.Bool) {
	s.mu.Lock()
	s.shuts++
	s.shutting = true
	s.spare(s.onSpared)
	s.mu.Unlock()
	if s.quiet() && !d.cancelled() {
		s.Shutdown(ctx)
	} else {
		skipped.Store(true)
		defer s.conns.check()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shuts--
	if s.draining.Load() && s.told || s.shuts > 0 {
		return
	}
	s.spare(nil)
	select {
	case <-s.closed:
		if s.isNeeded() {
			s.want()
		}
	default:
	}
}

func (s *otherServer) spare(closed func()) {
	for _, l := range s.conns.all() {
		l.Spare(closed)
	}
}

// Offer lets all connections move to m, or end here.
func (s *otherServer) Offer(m *sockets.Mover) {
	for _, l := range s.conns.all() {
		if m.Accepts(l, s.Protocol) {
			l.Release(m, false)
		} else {
			l.Release(nil, true)
		}
	}
}

func (s *otherServer) Resume() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.draining.Load() {
		return
	}
	if s.shuts == 0 { // else shut does it
		s.spare(nil)
	}
	for _, l := range s.conns.all() {
		l.Release(nil, false)
	}
	s.told = false
	s.draining.Store(false) // a Serve that has returned before was ended by the drain
	close(s.resumed)
	s.resumed = make(chan struct{})
}

// reopened lets Serve be called again if it has ended while another process served, and this
// one did not drain: there was nothing for it to do. If it had a reason of its own it ends
// again, and then the server does. A listener that the program has closed stays closed.
func (s *otherServer) reopened() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining.Load() || s.shuts > 0 || s.host.Stopping.Err() != nil {
		return
	}
	select {
	case <-s.closed:
	default:
		return
	}
	if s.host.acceptsOn(s.conns.all()) {
		s.want()
	}
}

func (s *otherServer) End() {
	s.spare(nil)
	for _, t := range s.conns.tracks() {
		t.Cut()
	}
	close(s.finished)
}
