//go:build linux

package serve

import (
	"crypto/tls"
	"encoding/hex"
	"math/rand/v2"
	"net"
	"testing"

	"github.com/julofinance/grace/v3/internal/testing/tlstest"
)

// A lagging connection holds back the last bytes of what is written to it, until it is
// flushed or more is written: the server has a part of a record then.
type lagging struct {
	net.Conn
	lag  int
	held []byte
}

func (c *lagging) Write(p []byte) (int, error) {
	all := append(c.held, p...)
	n := max(0, len(all)-c.lag)
	c.held = append([]byte(nil), all[n:]...)
	_, err := c.Conn.Write(all[:n])
	return len(p), err
}

func (c *lagging) flush() error {
	held := c.held
	c.held = nil
	_, err := c.Conn.Write(held)
	return err
}

// A laggingTLS is TLS over one.
type laggingTLS struct {
	*tls.Conn
	below *lagging
}

func (c laggingTLS) flush() error { return c.below.flush() }

func (c laggingTLS) CloseWrite() error {
	c.below.lag = 0 // crypto/tls lets nothing be written after it
	return c.Conn.CloseWrite()
}

// runTLS is run over TLS. The bytes say how much of a record lags behind, too: nothing,
// some of its end, or all but some of its header.
func (p plan) runTLS(t *testing.T, data []byte) {
	lag := 0
	if len(data) > 0 {
		lag = []int{0, 1, 15, 20, 100, 1 << 20}[int(data[len(data)-1])%6]
	}
	w := newTLSWorld(t)
	p.run(t, newCouple(t, w.over(sums)), func(c *couple) net.Conn {
		below := &lagging{Conn: c.dial()}
		conn := tls.Client(tlstest.Numbers(t, below, w.client))
		if err := conn.Handshake(); err != nil {
			t.Fatal(err)
		}
		below.lag = lag
		return laggingTLS{conn, below}
	})
}

// FuzzMoveTLS is FuzzMove over TLS.
func FuzzMoveTLS(f *testing.F) {
	for _, seed := range []string{
		"", "\x03\x00\x00\x00\x00\x00\x02\x01\x01\x01\x01\x01\x01",
		"\x05\x00\x01\xff\x02\x00\x04\x00\x00\x00\x00\x03\x40\x40\x40\x40",
	} {
		for drain := range byte(4) {
			for lag := range byte(6) {
				f.Add(append([]byte(seed), drain, drain*37, drain*101, lag))
			}
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) { newPlan(data).runTLS(t, data) })
}

// TestMoveTLSAtRandom: see TestMoveAtRandom.
func TestMoveTLSAtRandom(t *testing.T) {
	for range 100 {
		data := make([]byte, 1+rand.IntN(60))
		for i := range data {
			data[i] = byte(rand.Uint32())
		}
		t.Run(hex.EncodeToString(data), func(t *testing.T) { newPlan(data).runTLS(t, data) })
	}
}
