// Package load sends requests of many kinds to an HTTP server that is being
// replaced, and counts what gets lost.
//
// It speaks HTTP/1, and HTTP/2, over sockets of its own, so that nothing is retried behind
// its back: a request is lost if it was sent on a connection that the client
// had not seen closed, and no full and correct answer came. A stream that is
// cut and a connect that is refused or reset are lost as well. After an answer
// with "Connection: close" the client opens another connection, and after GOAWAY.
package load

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"
)

// A Kind is one sort of client.
type Kind string

const (
	KeepAlive   Kind = "keep-alive"   // POSTs on one connection, with random pauses
	Slow        Kind = "slow"         // GETs that take 300 ms, on one connection
	Connect     Kind = "connect"      // a connection for each request
	Stream      Kind = "stream"       // upgraded connections: 1.5 s, an echo each 50 ms
	Pipelined   Kind = "pipelined"    // four requests at once, on one connection
	Trickle     Kind = "trickle"      // a request whose bytes come one by one
	Upload      Kind = "upload"       // a body that takes 300 ms to be sent
	Expect      Kind = "expect"       // Expect: 100-continue
	Head        Kind = "head"         // HEAD: a length, but no body
	NotModified Kind = "not-modified" // 304
	Chunked     Kind = "chunked"      // an answer in five chunks
	HalfClose   Kind = "half-close"   // the client closes its half after the request

	TLS   Kind = "tls"   // what KeepAlive does, over TLS
	HTTP2 Kind = "http2" // four POSTs at once on one connection, over TLS
)

// Kinds are those that go to Config.Addr, in the order in which a Report prints them.
var Kinds = []Kind{KeepAlive, Slow, Connect, Stream, Pipelined, Trickle, Upload, Expect, Head, NotModified, Chunked, HalfClose}

// SecureKinds are those that go to Config.TLSAddr.
var SecureKinds = []Kind{TLS, HTTP2}

// Each returns n clients of each of Kinds, for Config.Kinds.
func Each(n int) map[Kind]int {
	m := map[Kind]int{}
	for _, k := range Kinds {
		m[k] = n
	}
	return m
}

// Keeps reports whether clients of this kind keep their connection.
func (k Kind) Keeps() bool { return k != Connect && k != Stream && k != HalfClose }

// A Config says what to send, and where.
type Config struct {
	Network string        // default tcp
	Addr    string        // the server, which serves Handler
	Kinds   map[Kind]int  // clients of each kind
	Delay   time.Duration // if above 0, through a Relay that adds it each way
	Pause   time.Duration // the longest pause between two requests; default 40 ms
	Limit   time.Duration // an answer that takes longer is lost; default 15 s
	TLS     *tls.Config   // if not nil, Addr speaks TLS, and Kinds HTTP/1.1 in it

	TLSAddr string      // the same server over TLS, for SecureKinds: HTTP/1.1 and HTTP/2
	Trust   *tls.Config // of those clients
}

// A Run is a load under way.
type Run struct {
	cfg    Config
	relays []*Relay // none without Delay
	stop   chan struct{}
	once   sync.Once
	wg     sync.WaitGroup
	begun  time.Time

	mu     sync.Mutex
	counts map[Kind]*Count
	pids   []int
	losses []Loss
	took   time.Duration // 0 while it runs
}

// Start starts the clients. They run until Stop is called or ctx ends.
func Start(ctx context.Context, cfg Config) (*Run, error) {
	if cfg.Network == "" {
		cfg.Network = "tcp"
	}
	if cfg.Pause == 0 {
		cfg.Pause = 40 * time.Millisecond
	}
	if cfg.Limit == 0 {
		cfg.Limit = 15 * time.Second
	}
	r := &Run{cfg: cfg, stop: make(chan struct{}), begun: time.Now(), counts: map[Kind]*Count{}}
	for kind, n := range cfg.Kinds {
		if _, ok := rounds[kind]; !ok {
			return nil, fmt.Errorf("load: no such kind: %q", kind)
		}
		if cfg.TLSAddr == "" && slices.Contains(SecureKinds, kind) {
			return nil, fmt.Errorf("load: %s needs TLSAddr", kind)
		}
		r.counts[kind] = &Count{Clients: n, Lost: map[string]int{}}
	}
	if cfg.Delay > 0 {
		for _, addr := range []*string{&r.cfg.Addr, &r.cfg.TLSAddr} {
			if *addr == "" {
				continue
			}
			relay, err := NewRelay(cfg.Network, *addr, cfg.Delay)
			if err != nil {
				r.closeRelays()
				return nil, fmt.Errorf("load: %w", err)
			}
			r.relays = append(r.relays, relay)
			*addr = relay.Addr()
		}
		r.cfg.Network = "tcp"
	}
	for kind, n := range cfg.Kinds {
		for i := range n {
			c := &client{load: r, kind: kind, id: i}
			r.wg.Go(c.run)
		}
	}
	go func() {
		select {
		case <-ctx.Done():
			r.end()
		case <-r.stop:
		}
	}()
	return r, nil
}

func (r *Run) end() { r.once.Do(func() { close(r.stop) }) }

func (r *Run) ended() bool {
	select {
	case <-r.stop:
		return true
	default:
		return false
	}
}

// Stop lets each client finish the request that it has begun, and says how
// everything went.
func (r *Run) Stop() Report {
	r.end()
	r.wg.Wait()
	r.closeRelays()
	r.mu.Lock()
	if r.took == 0 {
		r.took = time.Since(r.begun)
	}
	r.mu.Unlock()
	return r.Snapshot()
}

func (r *Run) closeRelays() {
	for _, relay := range r.relays {
		relay.Close()
	}
}

// dial opens a connection as a client of this kind would.
func (r *Run) dial(kind Kind) (net.Conn, error) {
	addr, trust, proto := r.cfg.Addr, r.cfg.TLS, "http/1.1"
	switch kind {
	case TLS:
		addr, trust = r.cfg.TLSAddr, r.cfg.Trust
	case HTTP2:
		addr, trust, proto = r.cfg.TLSAddr, r.cfg.Trust, "h2"
	}
	ctx, cancel := context.WithTimeout(context.Background(), r.cfg.Limit)
	defer cancel()
	c, err := new(net.Dialer).DialContext(ctx, r.cfg.Network, addr)
	if err != nil || trust == nil {
		return c, err
	}
	trust = trust.Clone()
	trust.NextProtos = []string{proto}
	t := tls.Client(c, trust)
	if err := t.HandshakeContext(ctx); err != nil {
		c.Close()
		return nil, err
	}
	return t, nil
}
