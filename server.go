package grace

import (
	"context"
	"net"
	"sync"
)

// A Server is one that is not net/http's: gRPC, fasthttp, your own protocol.
// [Upgrader.Server] runs and drains it.
type Server struct {
	// Listener is one that Upgrader.Listen gave, or that wraps one.
	Listener net.Listener

	// Serve serves the listener until Accept fails. It is called again if an
	// upgrade is rolled back after Shutdown has closed the listener, maybe
	// before the former call returns: it must make a new server where the old
	// one can't serve again, as gRPC's can't.
	Serve func(net.Listener) error

	// Shutdown is called when the process drains and accepts no more: it should
	// make connections end once what they do is done, and may wait for it. Its
	// context ends when the drain's time is up, when all connections are gone,
	// or when the upgrade is rolled back. It may close the listener. Its error
	// is not looked at, and it may be called when Serve never was. nil:
	// connections end by themselves, or move.
	Shutdown func(context.Context) error

	// Protocol names what is spoken, if connections may move to a new process
	// that serves the same socket with the same Protocol: see ErrMove and Move.
	// Empty: they stay until they end. "http/1.1" is net/http's.
	Protocol string
}

// Server gives an actor that runs s, like [Upgrader.HTTP]. execute returns nil
// when the process has handed over, or was stopped, and all connections that
// came from the listener are closed or moved; those that are left when
// [DrainTimeout] is up are cut off. Other errors are Serve's.
func (u *Upgrader) Server(s Server) (execute func() error, interrupt func(error)) {
	if s.Listener == nil || s.Serve == nil {
		return nilServer("Server"), func(error) {}
	}
	o := &otherServer{u: u, Server: s, finished: make(chan struct{}), resumed: make(chan struct{}), closed: make(chan struct{})}
	for _, l := range u.listensWith(&o.conns, s.Listener) {
		if s.Protocol != "" {
			l.live.adopt(phaseOther)
			u.takes(l, s.Protocol)
		}
	}
	u.serversMu.Lock()
	u.servers = append(u.servers, o)
	u.serversMu.Unlock()
	return o.serve, func(error) { u.Close() }
}

type otherServer struct {
	Server
	u        *Upgrader
	conns    connSet
	finished chan struct{}

	mu       sync.Mutex
	draining bool
	resumed  chan struct{}
	closed   chan struct{} // closed when Shutdown has closed the listener
}

func (s *otherServer) serve() error {
	for {
		resumed, closed := s.begin()
		returned := make(chan error, 1)
		go func() { returned <- s.Serve(s.Listener) }()
		select {
		case <-closed: // it will return, maybe when all its connections are gone
		case err := <-returned:
			s.mu.Lock()
			draining := s.draining
			s.mu.Unlock()
			if draining || s.u.ctx.Err() != nil || s.u.socks.keep(nil) {
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
		}
	}
}

// begin opens again what a Shutdown has closed.
func (s *otherServer) begin() (resumed, closed chan struct{}) {
	s.mu.Lock()
	s.closed = make(chan struct{})
	resumed, closed = s.resumed, s.closed
	s.mu.Unlock()
	for _, l := range s.conns.all() {
		s.u.socks.unpark(l)
	}
	return resumed, closed
}

// onClose: Shutdown has closed the listener.
func (s *otherServer) onClose() {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.closed:
	default:
		close(s.closed)
	}
}

func (s *otherServer) drain(d *drain) drainReport {
	s.mu.Lock()
	s.draining = true
	s.mu.Unlock()
	begun := len(s.conns.tracks())
	s.offer(d.mover)
	// What waits to be accepted comes first: Shutdown may close the listener.
	if s.Shutdown != nil && s.conns.wait(d, s.conns.quiet) {
		ctx, cancel := context.WithCancel(d.ctx)
		defer cancel()
		go func() {
			select {
			case <-d.cut:
				cancel()
			case <-ctx.Done():
			}
		}()
		go s.shut(ctx)
	}
	s.conns.wait(d, func() bool { return s.conns.left(true) == 0 })
	if d.cancelled() {
		s.resume()
		return drainReport{}
	}
	cut := s.conns.open(true)
	return drainReport{finished: max(0, begun-cut), cut: cut}
}

// shut calls Shutdown. It closes no listener for good: the upgrade may be
// rolled back meanwhile.
func (s *otherServer) shut(ctx context.Context) {
	for _, l := range s.conns.all() {
		l.spare(s.onClose)
		defer l.spare(nil)
	}
	if s.conns.quiet() { // not rolled back already
		s.Shutdown(ctx)
	}
}

// offer lets go of all connections: to m, or for good.
func (s *otherServer) offer(m *mover) {
	for _, l := range s.conns.all() {
		if m.accepts(l, s.Protocol) {
			l.release(m, false)
		} else {
			l.release(nil, true)
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
	for _, l := range s.conns.all() {
		l.release(nil, false)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.resumed)
	s.resumed = make(chan struct{})
}

func (s *otherServer) shutdown() {
	for _, t := range s.conns.tracks() {
		t.cut()
	}
	close(s.finished)
}
