//go:build unix

package serve

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/sockets"
	"github.com/julofinance/grace/v3/internal/testing/wait"
)

// A connection that was to be moved comes back when Shutdown has closed the
// listener: it is served, and Shutdown is called for it once more.
func TestConnectionThatComesBackAfterShutdown(t *testing.T) {
	for name, wrap := range map[string]func(net.Listener) net.Listener{
		"our own": func(ln net.Listener) net.Listener { return ln },
		"wrapped": func(ln net.Listener) net.Listener { return rewording{ln} },
	} {
		t.Run(name, func(t *testing.T) {
			u, ln := newProcess(t)
			var serving atomic.Pointer[net.Listener]
			conns, shut := make(chan net.Conn, 9), make(chan struct{}, 9)
			execute := u.Other(ForeignServer{
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
			served := u.run(t, execute)
			client, err := net.DialTimeout("tcp", ln.Addr().String(), wait.Limit)
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			c := wait.For(t, conns, "a connection")
			u.Socks.Yield(u.Socks.Snapshot(), []int{0})
			u.Socks.EndAccept()
			drained := make(chan Report, 1)
			go func() { drained <- u.All()[1].Drain(NewDrain(nil)) }()
			wait.For(t, shut, "Shutdown")

			l := ln.(*sockets.Listener)
			l.TakeBack(sockets.TrackOf(c), []byte("rest"), nil, false)
			c = wait.For(t, conns, "the connection to be served again")
			b := make([]byte, 9)
			c.SetReadDeadline(time.Now().Add(wait.Limit))
			if n, err := c.Read(b); err != nil || string(b[:n]) != "rest" {
				t.Errorf("it begins with %q, error %v; want what was unread", b[:n], err)
			}
			wait.For(t, shut, "Shutdown for what has come back")
			c.Close()
			wait.For(t, drained, "the end of the drain")
			u.askStop()
			wait.For(t, u.Done(), "Done")
			if err := wait.For(t, served, "execute"); err != nil {
				t.Errorf("execute returned %v", err)
			}
		})
	}
}

// An acceptCounter counts the calls of Accept.
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
	u, ln := newProcess(t)
	var accepts atomic.Int32
	wrapped := acceptCounter{ln, &accepts}
	conns, ended := make(chan net.Conn), make(chan struct{})
	execute := u.Other(ForeignServer{
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
	served := u.run(t, execute)
	for range connections {
		client, err := net.DialTimeout("tcp", ln.Addr().String(), wait.Limit)
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		wait.For(t, conns, "the connection").Close()
	}
	u.askStop()
	wait.For(t, u.Done(), "Done")
	if err := wait.For(t, served, "execute"); err != nil {
		t.Errorf("execute returned %v", err)
	}
	wait.For(t, ended, "the end of Serve, which execute need not wait for")
	if got := accepts.Load(); got != connections+1 { // the last one has failed
		t.Errorf("Accept was called %d times, want %d: by Serve alone", got, connections+1)
	}
}

// A rewording wraps a listener, and gives errors of its own.
type rewording struct{ net.Listener }

func (l rewording) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, errors.New("no more connections")
	}
	return c, nil
}
