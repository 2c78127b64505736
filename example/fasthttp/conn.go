package main

import (
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"github.com/julofinance/grace/v3"
	"github.com/valyala/fasthttp"
)

// idleGrace is how long a connection that no process takes is kept for one more
// request.
const idleGrace = 5 * time.Second

// A listener accepts connections that move between two requests.
type listener struct{ net.Listener }

func (l listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &conn{Conn: c, between: true}, nil
}

// A conn moves by itself when fasthttp reads and has nothing of the next
// request: fasthttp reads then only if its own buffer is empty and all answers
// are sent.
type conn struct {
	net.Conn
	between bool // two requests, or before the first one
	asked   bool // the first one is answered
	last    bool // the next answer is the last one; the read deadline is ours

	mu    sync.Mutex
	moved bool
}

// Read says io.EOF when the connection has moved.
func (c *conn) Read(p []byte) (int, error) {
	for {
		n, err := c.Conn.Read(p)
		if n > 0 && c.between {
			c.between = false
			if c.last {
				c.SetReadDeadline(time.Time{}) // fasthttp sets its own, if any, after this
			}
		}
		if !errors.Is(err, grace.ErrMove) {
			return n, err
		}
		if !c.between {
			continue // a request is on its way; Read says so again
		}
		switch err := c.move(); {
		case err == nil:
			return 0, io.EOF
		case errors.Is(err, grace.ErrStopped):
			c.last = true
			c.SetReadDeadline(time.Now().Add(idleGrace))
		}
	}
}

func (c *conn) move() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	err := grace.Move(c.Conn, nil)
	c.moved = err == nil
	return err
}

// Close closes the connection if it is still ours.
func (c *conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.moved {
		return nil
	}
	return c.Conn.Close()
}

// connState is fasthttp's hook; the connection's own goroutine calls it. fasthttp
// calls a connection active once it has the first byte of the next request, which
// it may have read together with the request before; a new one at once.
func connState(nc net.Conn, state fasthttp.ConnState) {
	c, ok := nc.(*conn)
	switch {
	case !ok:
	case state == fasthttp.StateIdle:
		c.between, c.asked = true, true
	case state == fasthttp.StateActive && c.asked:
		c.between = false
	}
}

// sayClose tells the client when an answer is the last one on its connection.
func sayClose(next fasthttp.RequestHandler) fasthttp.RequestHandler {
	return func(ctx *fasthttp.RequestCtx) {
		next(ctx)
		if c, ok := ctx.Conn().(*conn); ok && c.last {
			ctx.SetConnectionClose()
		}
	}
}
