//go:build unix

package grace

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/sockets"
)

// A connection that was to be moved comes back when Shutdown has closed the
// listener: it is served, and Shutdown is called for it once more.
func TestConnectionThatComesBackAfterShutdown(t *testing.T) {
	for name, wrap := range map[string]func(net.Listener) net.Listener{
		"our own": func(ln net.Listener) net.Listener { return ln },
		"wrapped": func(ln net.Listener) net.Listener { return ownWords{ln} },
	} {
		t.Run(name, func(t *testing.T) {
			u, ln := newSolo(t)
			var serving atomic.Pointer[net.Listener]
			conns, shut := make(chan net.Conn, 9), make(chan struct{}, 9)
			execute, _ := u.Server(Server{
				Listener: wrap(ln),
				Protocol: "own",
				Serve: func(l net.Listener) error {
					serving.Store(&l)
					for {
						c, err := l.Accept()
						if err != nil {
							return err
						}
						conns <- c
					}
				},
				Shutdown: func(context.Context) error {
					defer func() { shut <- struct{}{} }()
					return (*serving.Load()).Close()
				},
			})
			served := make(chan error, 1)
			go func() { served <- execute() }()
			if err := u.Ready(); err != nil {
				t.Fatal(err)
			}
			client, err := net.DialTimeout("tcp", ln.Addr().String(), limit)
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			c := receive(t, conns, "a connection")
			u.socks.Yield(u.socks.Snapshot(), []int{0})
			u.socks.EndAccept()
			drained := make(chan drainReport, 1)
			go func() { drained <- u.allServers()[1].drain(newDrain(nil)) }()
			receive(t, shut, "Shutdown")

			l := ln.(*sockets.Listener)
			l.TakeBack(sockets.TrackOf(c), []byte("rest"), nil, false)
			c = receive(t, conns, "the connection to be served again")
			b := make([]byte, 9)
			c.SetReadDeadline(time.Now().Add(limit))
			if n, err := c.Read(b); err != nil || string(b[:n]) != "rest" {
				t.Errorf("it begins with %q, error %v; want what was unread", b[:n], err)
			}
			receive(t, shut, "Shutdown for what has come back")
			c.Close()
			receive(t, drained, "the end of the drain")
			u.askStop()
			receive(t, u.Done(), "Done")
			if err := receive(t, served, "execute"); err != nil {
				t.Errorf("execute returned %v", err)
			}
		})
	}
}

// An acceptCounter counts who has come to Accept.
type acceptCounter struct {
	net.Listener
	accepts *atomic.Int32
}

func (l acceptCounter) Accept() (net.Conn, error) {
	l.accepts.Add(1)
	return l.Listener.Accept()
}

// TestServeFromElsewhere: a Serve that accepts from the user's listener itself
// loses no connection to ours.
func TestServeFromElsewhere(t *testing.T) {
	const connections = 3
	u, ln := newSolo(t)
	var accepts atomic.Int32
	wrapped := acceptCounter{ln, &accepts}
	conns, ended := make(chan net.Conn), make(chan struct{})
	execute, _ := u.Server(Server{
		Listener: wrapped,
		Serve: func(net.Listener) error {
			defer close(ended)
			for {
				c, err := wrapped.Accept()
				if err != nil {
					return err
				}
				conns <- c
			}
		},
	})
	served := make(chan error, 1)
	go func() { served <- execute() }()
	if err := u.Ready(); err != nil {
		t.Fatal(err)
	}
	for range connections {
		client, err := net.DialTimeout("tcp", ln.Addr().String(), limit)
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		receive(t, conns, "the connection").Close()
	}
	u.askStop()
	receive(t, u.Done(), "Done")
	if err := receive(t, served, "execute"); err != nil {
		t.Errorf("execute returned %v", err)
	}
	receive(t, ended, "the end of Serve, which execute need not wait for")
	if got := accepts.Load(); got != connections+1 { // the last one has failed
		t.Errorf("Accept was called %d times, want %d: by Serve alone", got, connections+1)
	}
}

// A closeCounter counts how often it is closed.
type closeCounter struct {
	net.Listener
	closes *atomic.Int32
}

func (l closeCounter) Close() error {
	l.closes.Add(1)
	return l.Listener.Close()
}

// What the user has wrapped around our listener may not live on after Close: it is
// closed once, at the end, and by no drain, which may be called off.
func TestWrapperIsClosedOnceAtTheEnd(t *testing.T) {
	conns := make(chan net.Conn, 9)
	for name, run := range map[string]func(u *Upgrader, ln net.Listener) (execute func() error, isShut func() bool){
		"HTTP": func(u *Upgrader, ln net.Listener) (func() error, func() bool) {
			// Shutdown is called when only hijacked connections are left.
			srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				c, _, err := http.NewResponseController(w).Hijack()
				if err != nil {
					t.Error(err)
				}
				conns <- c
			})}
			execute, _ := u.HTTP(srv, ln)
			s := u.httpServer(srv)
			return execute, func() bool { s.mu.Lock(); defer s.mu.Unlock(); return s.isShut }
		},
		"Server": func(u *Upgrader, ln net.Listener) (func() error, func() bool) {
			var serving atomic.Pointer[net.Listener]
			var shut atomic.Bool
			execute, _ := u.Server(Server{
				Listener: ln,
				Serve: func(l net.Listener) error {
					serving.Store(&l)
					for {
						c, err := l.Accept()
						if err != nil {
							return err
						}
						conns <- c
					}
				},
				Shutdown: func(context.Context) error {
					defer shut.Store(true)
					return (*serving.Load()).Close()
				},
			})
			return execute, shut.Load
		},
	} {
		t.Run(name, func(t *testing.T) {
			var closes atomic.Int32
			var isShut func() bool
			served := make(chan error, 1)
			h := newHouse(t, func(g *generation) error {
				ln, err := g.Listen("tcp", "127.0.0.1:0")
				if err != nil || g.n > 1 {
					return errors.Join(err, g.Ready())
				}
				var execute func() error
				execute, isShut = run(g.Upgrader, closeCounter{ln, &closes})
				go func() { served <- execute() }()
				return g.Ready()
			})
			h.opts = func(int) []Option { return []Option{Probation(0)} }
			g := h.first()
			client, err := net.Dial("tcp", g.socks.Snapshot()[0].Bound)
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			io.WriteString(client, "GET / HTTP/1.1\r\nHost: grace\r\n\r\n")
			c := receive(t, conns, "a connection")
			defer c.Close()
			done := g.upgrade()
			next := h.next()
			if err := receive(t, done, "Upgrade"); err != nil {
				t.Fatal(err)
			}
			until(t, "the server to be shut down", isShut)
			next.die()
			g.await(serving)
			if n := closes.Load(); n != 0 {
				t.Errorf("a drain that was called off has closed it %d times", n)
			}
			c.Close()
			g.askStop()
			receive(t, g.Done(), "Done")
			if err := receive(t, served, "execute"); err != nil {
				t.Errorf("execute returned %v", err)
			}
			until(t, "the end of the listener", func() bool { return closes.Load() > 0 })
			if n := closes.Load(); n != 1 {
				t.Errorf("it was closed %d times", n)
			}
		})
	}
}
