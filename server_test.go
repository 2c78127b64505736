//go:build unix

package grace

import (
	"context"
	"net"
	"sync/atomic"
	"testing"
	"time"
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
			u.socks.yield(u.socks.snapshot(), []int{0})
			drained := make(chan drainReport, 1)
			go func() { drained <- u.allServers()[1].drain(newDrain(nil)) }()
			receive(t, shut, "Shutdown")

			l := ln.(*listener)
			l.takeBack(trackOf(c), []byte("rest"), nil, false)
			c = receive(t, conns, "the connection to be served again")
			b := make([]byte, 9)
			c.SetReadDeadline(time.Now().Add(limit))
			if n, err := c.Read(b); err != nil || string(b[:n]) != "rest" {
				t.Errorf("it begins with %q, error %v; want what was unread", b[:n], err)
			}
			receive(t, shut, "Shutdown for what has come back")
			c.Close()
			receive(t, drained, "the end of the drain")
			u.Stop()
			receive(t, u.Done(), "Done")
			if err := receive(t, served, "execute"); err != nil {
				t.Errorf("execute returned %v", err)
			}
		})
	}
}

// TestServeFromElsewhere: a Serve that accepts from the user's listener itself
// loses no connection to ours.
func TestServeFromElsewhere(t *testing.T) {
	u, ln := newSolo(t)
	wrapped := ownWords{ln}
	conns := make(chan net.Conn)
	execute, _ := u.Server(Server{
		Listener: wrapped,
		Serve: func(net.Listener) error {
			for {
				c, err := wrapped.Accept()
				if err != nil {
					return err
				}
				conns <- c
			}
		},
	})
	go execute()
	if err := u.Ready(); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		client, err := net.DialTimeout("tcp", ln.Addr().String(), limit)
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		receive(t, conns, "the connection").Close()
	}
	u.Stop()
	receive(t, u.Done(), "Done")
}
