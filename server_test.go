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
)

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
			var shut atomic.Bool
			srv.RegisterOnShutdown(func() { shut.Store(true) })
			execute, _ := u.HTTP(srv, ln)
			return execute, shut.Load
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
