package grace

import (
	"context"
	"net"
	"sync"

	"github.com/julofinance/grace/v3/internal/gate"
	"github.com/julofinance/grace/v3/internal/sockets"
)

// A Server is one that is not net/http's: gRPC, fasthttp, your own protocol.
// [Upgrader.Server] runs and drains it.
type Server struct {
	// Listener is one that Upgrader.Listen gave, or that wraps one.
	Listener net.Listener

	// Serve serves the listener that it is given until Accept fails: Listener, or
	// what stands before it. If it closes what stands before it, Listener is
	// closed only at the end: a roll back may need it. Serve is called again if an
	// upgrade is rolled back after Shutdown has closed the listener, or if a
	// connection that was to be moved comes back then; maybe before the former
	// call returns. It must make a new server where the old one can't serve again,
	// as gRPC's can't.
	Serve func(net.Listener) error

	// Shutdown is called when the process drains and accepts no more: it should
	// make connections end once what they do is done, and may wait for it. Its
	// context ends when the drain's time is up, when all connections are gone,
	// or when the upgrade is rolled back. It may close the listener. Its error
	// is not looked at, and it may be called when Serve never was, and again after
	// Serve was. nil: connections end by themselves, or move.
	Shutdown func(context.Context) error

	// Protocol names what is spoken, if connections may move to a new process
	// that serves the same socket with the same Protocol: see ErrMove and Move.
	// Empty: they stay until they end. "http/1.1" is net/http's.
	Protocol string
}

// Server gives u the server s to run, as [Upgrader.HTTP] does. execute returns nil
// when the process has handed over, or was stopped, and all connections that
// came from the listener are closed or moved; those that are left when
// [DrainTimeout] is up are cut off. Other errors are Serve's.
func (u *Upgrader) Server(s Server) (execute func() error, interrupt func(error)) {
	if s.Listener == nil || s.Serve == nil {
		return u.actor(nilServer("Server"))
	}
	o := &otherServer{
		u: u, Server: s, finished: make(chan struct{}), resumed: make(chan struct{}), closed: make(chan struct{}), wanted: make(chan struct{}),
	}
	if _, ours := s.Listener.(*sockets.Listener); !ours {
		o.hall = newHall(s.Listener, o.conns.check)
	}
	for _, l := range u.listensWith(&o.conns, s.Listener) {
		if s.Protocol != "" {
			l.Live.Adopt(sockets.PhaseOther)
			u.takes(l, s.Protocol)
		}
	}
	u.serversMu.Lock()
	u.addServer(o)
	u.serversMu.Unlock()
	return u.actor(o.serve)
}

type otherServer struct {
	Server
	u        *Upgrader
	conns    connSet
	hall     *hall // nil if Listener is ours itself
	finished chan struct{}

	mu       sync.Mutex
	draining bool
	resumed  chan struct{}
	closed   chan struct{} // closed when Shutdown has closed the listener
	wanted   chan struct{} // closed when Serve is to be called again: a connection waits
}

func (s *otherServer) serve() error {
	if s.hall != nil {
		defer s.hall.end()
	}
	for {
		select {
		case <-s.finished: // before it has begun
			return nil
		default:
		}
		ln, resumed, closed, wanted := s.begin()
		returned := make(chan error, 1)
		go func() { returned <- s.Serve(ln) }()
		var finished chan struct{}
		if s.hall != nil { // a wrapper may not notice the end of our listener
			finished = s.finished
		}
		select {
		case <-finished:
			return nil
		case <-closed: // it will return, maybe when all its connections are gone
		case err := <-returned:
			s.mu.Lock()
			draining := s.draining
			s.mu.Unlock()
			if draining || s.u.ctx.Err() != nil || s.u.socks.Keep(nil) {
				s.onClose(closed) // nothing accepts any more
				break
			}
			select {
			case <-closed:
			case <-resumed: // a drain was called off right now
			default:
				return err // ended by the program itself
			}
		}
		select {
		case <-s.finished:
			return nil
		case <-resumed:
		case <-wanted:
		}
	}
}

// begin opens again what a Shutdown has closed, and returns what Serve is to
// serve.
func (s *otherServer) begin() (ln net.Listener, resumed, closed, wanted chan struct{}) {
	s.mu.Lock()
	s.closed, s.wanted = make(chan struct{}), make(chan struct{})
	resumed, closed, wanted = s.resumed, s.closed, s.wanted
	s.mu.Unlock()
	for _, l := range s.conns.all() {
		s.u.socks.Unpark(l)
	}
	if s.hall != nil {
		return s.hall.open(func() { s.onClose(closed) }), resumed, closed, wanted
	}
	return s.Listener, resumed, closed, wanted
}

// onClose: the listener that begin has given together with closed accepts nothing
// any more.
func (s *otherServer) onClose(closed chan struct{}) {
	s.mu.Lock()
	select {
	case <-closed:
	default:
		close(closed)
	}
	s.mu.Unlock()
	s.conns.check()
}

// onSpared: Shutdown has closed our listener itself.
func (s *otherServer) onSpared() {
	s.mu.Lock()
	closed := s.closed
	s.mu.Unlock()
	s.onClose(closed)
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
		l.Gate.Swap(gate.Parked, gate.Shut)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.wanted:
	default:
		close(s.wanted)
	}
}

func (s *otherServer) drain(d *drain) drainReport {
	s.mu.Lock()
	s.draining = true
	s.mu.Unlock()
	begun := len(s.conns.tracks())
	s.offer(d.mover)
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
	for s.Shutdown != nil && s.conns.wait(d, s.quiet) {
		go s.shut(ctx)
		s.conns.wait(d, func() bool { return s.conns.left(true) == 0 || s.stranded() })
		if !s.stranded() || d.cancelled() {
			break
		}
		s.serveOn()
	}
	s.conns.wait(d, func() bool { return s.conns.left(true) == 0 })
	if d.cancelled() {
		s.resume()
		return drainReport{}
	}
	cut := s.conns.open(true)
	return drainReport{finished: max(0, begun-cut), cut: cut}
}

// shut calls Shutdown. The listeners are spared: they are not closed for good,
// since the upgrade may be rolled back meanwhile.
func (s *otherServer) shut(ctx context.Context) {
	s.spare(s.onSpared)
	if s.quiet() { // else the upgrade was rolled back already
		s.Shutdown(ctx)
	}
}

func (s *otherServer) spare(closed func()) {
	for _, l := range s.conns.all() {
		l.Spare(closed)
	}
}

// offer lets all connections move to m, or end here.
func (s *otherServer) offer(m *sockets.Mover) {
	for _, l := range s.conns.all() {
		if m.Accepts(l, s.Protocol) {
			l.Release(m, false)
		} else {
			l.Release(nil, true)
		}
	}
}

func (s *otherServer) resume() {
	s.mu.Lock()
	draining := s.draining
	s.draining = false
	s.mu.Unlock()
	if !draining {
		return
	}
	s.spare(nil)
	for _, l := range s.conns.all() {
		l.Release(nil, false)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.resumed)
	s.resumed = make(chan struct{})
}

func (s *otherServer) shutdown() {
	s.spare(nil)
	for _, t := range s.conns.tracks() {
		t.Cut()
	}
	close(s.finished)
}

// ErrMove is returned by Read on a connection of a [Server] with a Protocol
// when this process wants to be rid of it: the handler calls [Move] with what
// it has read and not used yet, and returns. If it is not at a point where it
// could, it reads on: nothing is lost, and Read says so again after more data. All
// methods of a unix connection that read do the same.
var ErrMove = sockets.ErrMove

// ErrNotMoved is returned by [Move] when the connection stays here.
var ErrNotMoved = sockets.ErrNotMoved

// Move hands the connection c, one accepted from a listener that a [Server]
// with a Protocol serves, over to the new process, together with the bytes that
// were read from it and not used: the new process accepts it from its own
// listener, and reads those first. c is not the caller's any more then, and
// must not be used or closed. At most 32 KiB of unread can go along.
//
// ErrNotMoved means that c stays, as it was, and should be served on: unread is
// too long, say, or the upgrade was rolled back. If the error is ErrStopped too,
// this process ends and no process takes c: the handler may say goodbye and close
// it, or serve on until [DrainTimeout] cuts it off. No Read of c may be in
// progress during the call.
func Move(c net.Conn, unread []byte) error { return sockets.Move(c, unread) }
