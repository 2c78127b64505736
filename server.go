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

	// Serve serves the listener until Accept fails or Shutdown was called. It
	// is called again if an upgrade is rolled back after Shutdown: then it must
	// make a new server where the old one can't serve again, as gRPC's can't.
	Serve func(net.Listener) error

	// Shutdown is called when the process drains: it should make connections
	// end once what they do is done, and may wait for it. Its context ends when
	// the drain's time is up or the upgrade is rolled back. It may close the
	// listener. nil: connections end by themselves, or move.
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
	o := &otherServer{u: u, Server: s, finished: make(chan struct{}), resumed: make(chan struct{})}
	for _, l := range o.conns.listens(u, s.Listener) {
		if s.Protocol != "" {
			l.adopt(phaseOther)
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
}

func (s *otherServer) serve() error {
	for {
		s.mu.Lock()
		resumed := s.resumed
		s.mu.Unlock()
		err := s.Serve(s.Listener)
		s.mu.Lock()
		draining := s.draining
		s.mu.Unlock()
		if !draining && s.u.ctx.Err() == nil && !s.u.socks.keep(nil) {
			select {
			case <-resumed: // a drain was called off right now
				continue
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

func (s *otherServer) drain(d *drain) drainReport {
	s.mu.Lock()
	s.draining = true
	s.mu.Unlock()
	begun := len(s.conns.tracks())
	s.offer(d.mover)
	if s.Shutdown != nil {
		ctx, cancel := context.WithCancel(d.ctx)
		defer cancel()
		go func() {
			select {
			case <-d.cut:
				cancel()
			case <-ctx.Done():
			}
		}()
		go s.Shutdown(ctx)
	}
	s.conns.wait(d, func() bool { return s.conns.left(true) == 0 })
	if d.cancelled() {
		s.resume()
		return drainReport{}
	}
	cut := s.conns.left(true)
	return drainReport{finished: max(0, begun-cut), cut: cut}
}

func (s *otherServer) offer(m *mover) {
	for _, l := range s.conns.all() {
		if !m.accepts(l, s.Protocol) {
			continue
		}
		l.offer(m)
		for _, t := range l.live.all() {
			t.offer(m)
		}
	}
}

func (s *otherServer) resume() {
	for _, l := range s.conns.all() {
		l.offer(nil)
		for _, t := range l.live.all() {
			t.offer(nil)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.draining = false
	close(s.resumed)
	s.resumed = make(chan struct{})
}

func (s *otherServer) shutdown() {
	for _, t := range s.conns.tracks() {
		t.inner.Close()
	}
	close(s.finished)
}
