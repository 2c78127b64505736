//go:build unix

package grace

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// A counter is a Server of a generation, which tells each connection the number of it, and
// has it until the client closes it. Its Shutdown closes the listener, as that of gRPC does.
type counter struct {
	addr net.Addr
	shut chan struct{} // Shutdown has closed the listener
}

// addCounter lets each generation of b serve one, beside HTTP.
func addCounter(b *bank) *counter {
	c := &counter{shut: make(chan struct{}, 9)}
	main := b.main
	b.main = func(g *generation) error {
		ln, err := g.Listen("tcp", "localhost:0")
		if err != nil {
			return err
		}
		if g.n == 1 {
			c.addr = ln.Addr()
		}
		var mu sync.Mutex
		var serving net.Listener // guarded by mu
		execute, _ := g.Server(Server{
			Listener: ln,
			Serve: func(ln net.Listener) error {
				mu.Lock()
				serving = ln
				mu.Unlock()
				for {
					conn, err := ln.Accept()
					if err != nil {
						return err
					}
					fmt.Fprintln(conn, g.n)
					go func() {
						defer conn.Close()
						io.Copy(io.Discard, conn)
					}()
				}
			},
			Shutdown: func(context.Context) error {
				mu.Lock()
				defer mu.Unlock()
				defer func() { c.shut <- struct{}{} }()
				return serving.Close()
			},
		})
		go func() {
			if err := execute(); err != nil {
				b.t.Errorf("generation %d: execute returned %v", g.n, err)
			}
		}()
		return main(g)
	}
	return c
}

func (c *counter) connect(t *testing.T) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", c.addr.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(limit))
	return conn
}

// answers reads from a connection that generation n must have accepted, and closes it.
func (c *counter) answers(t *testing.T, conn net.Conn, n int) {
	t.Helper()
	defer conn.Close()
	s, err := bufio.NewReader(conn).ReadString('\n')
	if s != fmt.Sprintln(n) {
		t.Errorf("got %q, %v; want the answer of generation %d", s, err, n)
	}
}

// TestExclusiveServer: a Server whose Shutdown has closed its listener in the pause serves
// on when the new generation fails, before the vault was released or after that. A client that
// has connected meanwhile is answered, and the next upgrade
// succeeds.
func TestExclusiveServer(t *testing.T) {
	for name, lent := range map[string]bool{"in the pause": false, "when the vault is lent": true} {
		t.Run(name, func(t *testing.T) {
			b := newBank(t)
			c := addCounter(b)
			fails := make(chan struct{})
			b.v.fail = func(call string) error {
				if call != "2 acquire" {
					return nil
				}
				<-fails
				return errors.New("no")
			}
			serve, begun := b.main, make(chan *generation, 9)
			b.main = func(g *generation) error {
				begun <- g
				return serve(g)
			}
			first := b.first()
			receive(t, begun, "the first generation")
			busy := c.connect(t)
			p := b.pause(t, first)
			second := receive(t, begun, "the second generation")
			receive(t, c.shut, "Shutdown of the Server")
			waiting := c.connect(t)
			if lent {
				c.answers(t, busy, 1)
				close(b.go1)
				p.busy.reads("1")
			} else {
				second.die()
			}
			close(fails)
			wantErr(t, receive(t, p.done, "Upgrade"), ErrExited)
			c.answers(t, waiting, 1)
			if !lent {
				c.answers(t, busy, 1)
				close(b.go1)
				p.busy.reads("1")
			}
			first.await(serving)
			c.answers(t, c.connect(t), 1)
			if err := receive(t, first.upgrade(), "the next upgrade"); err != nil {
				t.Fatal(err)
			}
			c.answers(t, c.connect(t), 3)
		})
	}
}
