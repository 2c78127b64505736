//go:build linux

package serve

import (
	"context"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/control"
	"github.com/julofinance/grace/v3/internal/fd"
	"github.com/julofinance/grace/v3/internal/manifest"
	"github.com/julofinance/grace/v3/internal/sockets"
	"github.com/julofinance/grace/v3/internal/testing/fdtest"
	"github.com/julofinance/grace/v3/internal/testing/wait"
)

// A couple is an old and a new process, each with an http.Server on the same socket,
// and a real control channel between them. Nothing else of an upgrade is there: the
// drain of the old one and the end of either are the test's.
type couple struct {
	t        testing.TB
	old, new *side
	mover    *sockets.Mover
	recv     *sockets.Receiver
}

// A side is what one process has.
type side struct {
	u    *solo
	srv  *http.Server
	l    *sockets.Listener
	http *httpServer
	ch   *control.Channel
	done chan struct{} // its Serve has returned
	seen chan net.Conn // the connections that it was given
}

func newSide(t testing.TB, m *manifest.Manifest, fd int, h http.Handler, settings ...setting) *side {
	t.Helper()
	u := &solo{Host: newHost(t.Context(), sockets.New(m, fd))}
	for _, set := range settings {
		set(u)
	}
	network, addr := "tcp", "127.0.0.1:0"
	if m != nil {
		network, addr = m.Sockets[0].Network, m.Sockets[0].Addr
	}
	ln, err := u.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	s := &side{u: u, l: ln.(*sockets.Listener), srv: &http.Server{Handler: h}, done: make(chan struct{}), seen: make(chan net.Conn, 100)}
	if c, ok := h.(configured); ok {
		c.configure(s.srv)
		if c.wrap != nil {
			ln = c.wrap(ln)
		}
		if c.host != nil {
			c.host(u.Host)
		}
	}
	user := s.srv.ConnContext
	s.srv.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		if user != nil {
			ctx = user(ctx, c)
		}
		select {
		case s.seen <- c:
		default:
		}
		return ctx
	}
	serve := u.HTTP
	if s.srv.TLSConfig != nil {
		serve = func(srv *http.Server, ln net.Listener) func() error { return u.HTTPS(srv, ln, "", "") }
	}
	execute := serve(s.srv, ln)
	s.http = u.httpServer(s.srv)
	go func() {
		execute()
		close(s.done)
	}()
	t.Cleanup(func() {
		u.Socks.Close()
		s.http.End()
		wait.For(t, s.done, "a server to end")
	})
	return s
}

// A configured handler has a server with settings, or a listener, of its own.
type configured struct {
	http.Handler
	configure func(*http.Server)
	wrap      func(net.Listener) net.Listener // may be nil, as the next
	host      func(*Host)
}

// open begins to accept.
func (s *side) open() {
	if err := s.u.Socks.OpenGates(); err != nil {
		panic(err)
	}
}

// newCouple makes both. handler is told which of them serves.
func newCouple(t testing.TB, handler func(side string) http.Handler) *couple {
	t.Helper()
	old := newSide(t, nil, 0, handler("old"))
	old.open()
	return newCoupleOf(t, old, handler("new"))
}

// next makes a couple whose old process is the new one of p.
func (p *couple) next(handler http.Handler) *couple { return newCoupleOf(p.t, p.new, handler) }

func newCoupleOf(t testing.TB, old *side, handler http.Handler) *couple {
	t.Helper()
	p := &couple{t: t, old: old}
	socks := p.old.u.Socks.Snapshot()
	var first int
	err := sockets.WithFDs(socks, func(_ []*sockets.Socket, fds []int) (err error) {
		first, err = fdtest.InOrder(fds)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	m := manifest.Manifest{Sockets: []manifest.Entry{socks[0].Entry}}
	p.new = newSide(t, &m, first, handler)
	theirs, n, err := control.Pair()
	if err != nil {
		t.Fatal(err)
	}
	ours, err := fd.NewUnixConn(n)
	if err != nil {
		t.Fatal(err)
	}
	from, to := control.New(theirs), control.New(ours)
	t.Cleanup(func() { from.Close(); to.Close() })
	p.old.ch, p.new.ch = from, to
	p.mover = sockets.NewMover(from, socks)
	p.mover.Patience = wait.Limit // for tests of something else
	p.mover.Learn(p.new.u.Socks.Claims())
	p.recv = &sockets.Receiver{Ch: to, Find: p.new.u.Socks.Taker, Held: map[uint32]*sockets.Received{}}
	return p
}

// runOld and runNew let a process read its end of the channel.
func (p *couple) runOld() {
	p.old.ch.Run(func(m control.Message) {
		if m.Type != sockets.MsgTook {
			return
		}
		if took, refused, err := sockets.DecodeIDs(m.Payload); err == nil {
			p.mover.OnTook(took, refused)
		}
	}, func(error) { p.mover.Stop() })
}

func (p *couple) runNew() {
	p.new.ch.Run(func(m control.Message) {
		switch m.Type {
		case sockets.MsgConns:
			p.recv.OnConns(m)
		case sockets.MsgVerdict:
			p.recv.OnVerdict(m)
		}
	}, func(error) { p.recv.OnEnd() })
}

// drain begins the old process's drain; what it gives ends with the drain.
func (p *couple) drain() (*Drain, <-chan Report) {
	p.new.open()
	p.old.u.Socks.Yield(p.old.u.Socks.Snapshot(), []int{0})
	p.old.u.Socks.EndAccept()
	d := NewDrain(p.mover)
	done := make(chan Report, 1)
	go func() { done <- p.old.http.Drain(d) }()
	p.t.Cleanup(d.Hurry)
	return d, done
}

func (p *couple) dial() net.Conn {
	p.t.Helper()
	c, err := net.DialTimeout(p.old.l.Addr().Network(), p.old.l.Addr().String(), wait.Limit)
	if err != nil {
		p.t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(wait.Limit))
	p.t.Cleanup(func() { c.Close() })
	return c
}

// saysSide answers each request with the side's name.
func saysSide(side string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		io.WriteString(w, side)
	})
}
