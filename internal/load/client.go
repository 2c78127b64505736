package load

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"time"
)

// errWrong is an answer to something else than what was asked.
var errWrong = errors.New("not the answer")

// A client sends requests of one kind, one round after the other.
type client struct {
	load *Run
	kind Kind
	id   int
	seq  int

	conn   net.Conn // nil: none
	in     *bufio.Reader
	opened int
	pid    int      // of the last answer on conn
	again  []string // pipelined requests to be sent again
}

func (c *client) run() {
	if c.kind == HTTP2 {
		c.runHTTP2()
		return
	}
	defer func() {
		if c.conn != nil {
			c.conn.Close()
		}
	}()
	for !c.load.ended() || len(c.again) > 0 {
		if c.conn == nil && !c.open() {
			if c.load.ended() && len(c.again) > 0 {
				c.lose(len(c.again), errUnanswered)
				return
			}
			time.Sleep(c.load.cfg.Pause) // no hot loop against a dead server
			continue
		}
		if !c.pause() {
			continue
		}
		c.conn.SetDeadline(time.Now().Add(c.load.cfg.Limit))
		if err := rounds[c.kind](c); err != nil {
			c.lose(1, err)
			c.drop()
		} else if !c.kind.Keeps() {
			c.drop()
		}
	}
}

// count changes the count of the client's kind.
func (c *client) count(f func(*Count)) {
	c.load.mu.Lock()
	defer c.load.mu.Unlock()
	f(c.load.counts[c.kind])
}

func (c *client) open() bool {
	conn, err := c.load.dial(c.kind)
	if err != nil {
		c.lose(1, fmt.Errorf("connect: %w", err))
		return false
	}
	c.conn, c.in, c.pid = conn, bufio.NewReader(conn), 0
	c.opened++
	c.count(func(n *Count) {
		n.Opened++
		if c.opened == 1 && c.kind.Keeps() {
			n.Same++
		}
	})
	return true
}

// drop closes the connection. Other than at its end, a client that keeps its
// connection does this only if it must.
func (c *client) drop() {
	c.conn.Close()
	c.conn = nil
	if c.opened == 1 && c.kind.Keeps() {
		c.count(func(n *Count) { n.Same-- })
	}
}

// pause waits a random while, and looks whether the connection ends meanwhile.
func (c *client) pause() bool {
	c.conn.SetReadDeadline(time.Now().Add(rand.N(c.load.cfg.Pause)))
	_, err := c.in.Peek(1)
	switch {
	case isTimeout(err):
		return true
	case err == nil:
		c.lose(1, fmt.Errorf("%w: bytes that no request asked for", errWrong))
	default:
		// A reset counts as seen too: nothing was under way.
		c.count(func(n *Count) { n.Idle++ })
	}
	c.drop()
	return false
}

func (c *client) lose(n int, err error) {
	if n == 0 {
		return
	}
	why := reason(err)
	r := c.load
	r.mu.Lock()
	defer r.mu.Unlock()
	r.counts[c.kind].Lost[why] += n
	if len(r.losses) < maxLosses {
		r.losses = append(r.losses, Loss{Kind: c.kind, Reason: why, Err: err, Pid: c.pid, At: time.Since(r.begun)})
	}
}

// answered counts a full and correct answer to a request sent at that time.
func (c *client) answered(resp *response, sent time.Time) {
	r := c.load
	r.mu.Lock()
	n := r.counts[c.kind]
	n.Answered++
	n.Slowest = max(n.Slowest, time.Since(sent))
	if c.pid != 0 && resp.pid != c.pid {
		n.Moved++
	}
	if resp.close && c.kind.Keeps() {
		n.Announced++
	}
	if resp.pid != 0 && !slices.Contains(r.pids, resp.pid) {
		r.pids = append(r.pids, resp.pid)
	}
	r.mu.Unlock()
	c.pid = resp.pid
	if resp.close && c.kind.Keeps() {
		c.drop()
	}
}

// token is a text that no other request has.
func (c *client) token() string {
	c.seq++
	return fmt.Sprintf("%s-%d-%d", c.kind, c.id, c.seq)
}

func (c *client) send(text string) error {
	_, err := io.WriteString(c.conn, text)
	return err
}

// receive reads one answer and compares it.
func (c *client) receive(method string, status int, body string) (*response, error) {
	resp, err := readResponse(c.in, method)
	if err != nil {
		return nil, err
	}
	if resp.status != status || string(resp.body) != body {
		return nil, fmt.Errorf("%w: got %d %.60q, want %d %.60q", errWrong, resp.status, resp.body, status, body)
	}
	return resp, nil
}

// ask sends one request and waits for its answer.
func (c *client) ask(request, method string, status int, body string) error {
	sent := time.Now()
	if err := c.send(request); err != nil {
		return err
	}
	resp, err := c.receive(method, status, body)
	if err != nil {
		return err
	}
	c.answered(resp, sent)
	return nil
}
