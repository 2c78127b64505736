package load

import (
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/julofinance/grace/v3/internal/testing/http2test"
)

// atOnce is how many requests a client of HTTP/2 sends at the same time.
const atOnce = 4

// runHTTP2 is run for a client of HTTP/2. When it is told to go away it opens another
// connection, and gets the rest of its answers over the old one.
func (c *client) runHTTP2() {
	asks := http2test.NewClient(c.openHTTP2)
	asks.Limit = c.load.cfg.Limit
	defer asks.Close()
	for !c.load.ended() {
		select {
		case <-time.After(rand.N(c.load.cfg.Pause)):
		case <-c.load.stop:
			return
		}
		var all sync.WaitGroup
		for range atOnce {
			token, rest := c.token(), strings.Repeat(".", rand.IntN(6000))
			all.Go(func() { c.postHTTP2(asks, token, rest) })
		}
		all.Wait()
	}
}

// openHTTP2 is called for one connection after the other.
func (c *client) openHTTP2() (net.Conn, error) {
	conn, err := c.load.dial(c.kind)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	c.opened++
	c.count(func(n *Count) {
		n.Opened++
		switch c.opened {
		case 1:
			n.Same++
		case 2:
			n.Same--
		}
	})
	return conn, nil
}

// postHTTP2 sends a body in two frames, and expects it back.
func (c *client) postHTTP2(asks *http2test.Client, token, rest string) {
	sent := time.Now()
	got, err := asks.Post("/echo", token, rest)
	if err == nil && got != token+rest {
		err = fmt.Errorf("%w: got %.60q, want %.60q", errWrong, got, token+rest)
	}
	if err != nil {
		c.lose(1, err)
		return
	}
	c.count(func(n *Count) {
		n.Answered++
		n.Slowest = max(n.Slowest, time.Since(sent))
	})
}
