package http2conn

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/testing/http2test"
	"github.com/julofinance/grace/v3/internal/testing/wait"
)

// A site is a listener whose connections are given to one server after the other, as
// a process that drains gives its place to the next.
type site struct {
	t       testing.TB
	addr    string
	trust   *tls.Config // of clients
	config  *tls.Config // nil without TLS
	handler http.HandlerFunc

	mu      sync.Mutex
	servers []*server
	drains  sync.WaitGroup
}

// A server is one of net/http, and its connections.
type server struct {
	*http.Server
	feed chan net.Conn
	done chan struct{}
	once sync.Once

	mu    sync.Mutex
	conns map[*Conn]bool
	leave bool
	come  chan *Conn // each that is given to the server
}

func (s *server) Accept() (net.Conn, error) {
	select {
	case c := <-s.feed:
		return c, nil
	case <-s.done:
		return nil, net.ErrClosed
	}
}

func (s *server) Close() error   { s.once.Do(func() { close(s.done) }); return nil }
func (s *server) Addr() net.Addr { return &net.TCPAddr{} }

type stateKey struct{}

func newSite(t testing.TB, overTLS bool, handler http.HandlerFunc) *site {
	s := &site{t: t, handler: handler}
	if overTLS {
		h := httptest.NewTLSServer(nil)
		s.trust = h.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
		s.config = &tls.Config{Certificates: h.TLS.Certificates, NextProtos: []string{"h2"}}
		h.Close()
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = ln.Addr().String()
	s.start()
	var accepting sync.WaitGroup
	accepting.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			accepting.Go(func() { s.meet(c) })
		}
	})
	t.Cleanup(func() {
		ln.Close()
		accepting.Wait()
		for _, srv := range s.servers {
			srv.Server.Close()
			srv.Close()
		}
		s.drains.Wait()
	})
	return s
}

// start puts a new server in the place of the last.
func (s *site) start() *server {
	srv := &server{Server: &http.Server{Protocols: new(http.Protocols)}, feed: make(chan net.Conn), done: make(chan struct{}), conns: map[*Conn]bool{}, come: make(chan *Conn, 1000)}
	srv.Protocols.SetHTTP2(true)
	srv.Protocols.SetUnencryptedHTTP2(true)
	srv.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		return context.WithValue(ctx, stateKey{}, Of(c).Hidden())
	}
	srv.ConnState = func(c net.Conn, state http.ConnState) {
		if state == http.StateClosed {
			srv.mu.Lock()
			defer srv.mu.Unlock()
			delete(srv.conns, Of(c))
		}
	}
	srv.Handler = s.handler
	srv.Serve(closedListener{}) // sets HTTP/2 up
	go srv.Serve(srv)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.servers = append(s.servers, srv)
	return srv
}

// A closedListener lets a server set itself up, and return.
type closedListener struct{ net.Listener }

func (closedListener) Accept() (net.Conn, error) { return nil, net.ErrClosed }
func (closedListener) Close() error              { return nil }

func (s *site) last() *server {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.servers[len(s.servers)-1]
}

func (s *site) meet(c net.Conn) {
	if s.config != nil {
		tc := tls.Server(c, s.config)
		if tc.Handshake() != nil {
			c.Close()
			return
		}
		c = tc
	}
	for {
		srv := s.last()
		served, conn := Serve(srv.Server, c)
		if conn == nil || (conn.Hidden() != nil) != (s.config != nil && !takesAny(srv.Server)) {
			s.t.Errorf("the server is given %T, conn %v", served, conn)
			c.Close()
			return
		}
		srv.mu.Lock()
		leave := srv.leave
		if !leave {
			srv.conns[conn] = true
		}
		srv.mu.Unlock()
		if leave { // another server is about to come, or has
			continue
		}
		srv.feed <- served
		srv.come <- conn
		return
	}
}

// drain lets the last server end, and another one take its place. It returns when the
// last has no connection any more.
func (s *site) drain(after time.Duration) {
	old := s.last()
	s.start()
	old.mu.Lock()
	old.leave = true
	var told sync.WaitGroup
	for c := range old.conns {
		told.Add(1)
		c.GoAway(after, told.Done)
	}
	old.mu.Unlock()
	told.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), wait.Limit)
	defer cancel()
	if err := old.Shutdown(ctx); err != nil {
		s.t.Errorf("Shutdown: %v", err)
	}
}

// echo answers with the body and, if asked for, many header fields.
func echo(w http.ResponseWriter, r *http.Request) {
	if state, _ := r.Context().Value(stateKey{}).(*tls.ConnectionState); r.TLS == nil {
		r.TLS = state
	}
	fields, _ := strconv.Atoi(r.URL.Query().Get("fields"))
	for i := range fields {
		w.Header().Set("X-Field-"+strconv.Itoa(i), strings.Repeat("value", 200))
	}
	w.Header().Set("X-Tls", fmt.Sprint(r.TLS != nil))
	w.(http.Flusher).Flush()
	io.Copy(w, r.Body)
}

// A client is a connection of HTTP/2, frame by frame.
type client struct {
	t  testing.TB
	c  net.Conn
	in *bufio.Reader

	next    uint32             // stream
	bodies  map[uint32]*[]byte // of answers, as far as they have come
	ended   map[uint32]bool    // answers that have
	aways   []uint32           // last ids of each GOAWAY
	refused map[uint32]bool    // streams that were reset
	open    uint32             // the stream whose header block has no end yet
}

// dial connects a client, with TLS if the site has that.
func (s *site) dial(addr string) (net.Conn, error) {
	c, err := net.DialTimeout("tcp", addr, wait.Limit)
	if err != nil {
		return nil, err
	}
	c.SetDeadline(time.Now().Add(2 * wait.Limit))
	if s.trust != nil {
		config := s.trust.Clone()
		config.NextProtos, config.ServerName = []string{"h2"}, "127.0.0.1"
		c = tls.Client(c, config)
	}
	return c, nil
}

func (s *site) scheme() string {
	if s.trust != nil {
		return "https"
	}
	return "http"
}

func newClient(t testing.TB, s *site, addr string) *client {
	t.Helper()
	c, err := s.dial(addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return clientOf(t, c)
}

func clientOf(t testing.TB, c net.Conn) *client {
	return &client{t: t, c: c, in: bufio.NewReaderSize(c, 64<<10), next: 1, bodies: map[uint32]*[]byte{}, ended: map[uint32]bool{}, refused: map[uint32]bool{}}
}

// hello sends the preface and SETTINGS with windows as large as can be.
func (c *client) hello() {
	c.t.Helper()
	c.send(append([]byte(http2test.Preface), frame(typeSettings, 0, 0, 0, 4, 0x7f, 0xff, 0xff, 0xff)...))
	c.send(frame(8, 0, 0, 0x7f, 0xff, 0, 0)) // WINDOW_UPDATE
}

func (c *client) send(b ...[]byte) {
	c.t.Helper()
	for _, b := range b {
		if _, err := c.c.Write(b); err != nil {
			c.t.Fatal(err)
		}
	}
}

// begin sends the header of a POST, and returns its stream.
func (c *client) begin(path string) uint32 {
	c.t.Helper()
	id := c.next
	c.next += 2
	c.send(frame(typeHeaders, flagEndHeaders, id, http2test.PostHeader(path)...))
	return id
}

// finish sends its body.
func (c *client) finish(id uint32, body string) {
	c.t.Helper()
	c.send(frame(0, 1, id, []byte(body)...))
}

func (c *client) post(body string) uint32 {
	c.t.Helper()
	id := c.begin("/")
	c.finish(id, body)
	return id
}

// read reads a frame, and returns its type and payload. It acknowledges SETTINGS, and
// keeps answers.
func (c *client) read() (typ byte, payload []byte, err error) {
	var h [9]byte
	if _, err := io.ReadFull(c.in, h[:]); err != nil {
		return 0, nil, err
	}
	payload = make([]byte, int(h[0])<<16+int(h[1])<<8+int(h[2]))
	if _, err := io.ReadFull(c.in, payload); err != nil {
		return 0, nil, fmt.Errorf("in the midst of a frame of type %d: %w", h[3], err)
	}
	typ, flags, id := h[3], h[4], binary.BigEndian.Uint32(h[5:])
	if c.open != 0 && (typ != typeContinuation || id != c.open) {
		return 0, nil, fmt.Errorf("a frame of type %d in a header block", typ)
	}
	switch typ {
	case typeHeaders, typeContinuation:
		if c.open = id; flags&flagEndHeaders != 0 {
			c.open = 0
		}
		if typ == typeHeaders && c.bodies[id] == nil {
			c.bodies[id] = new([]byte)
			if payload[0] != 0x88 { // :status 200 (RFC 7541, appendix A)
				return 0, nil, fmt.Errorf("stream %d: the answer begins with %#x", id, payload[0])
			}
		}
	case 0:
		*c.bodies[id] = append(*c.bodies[id], payload...)
	case 3:
		if binary.BigEndian.Uint32(payload) != 0 {
			c.refused[id] = true
		}
	case typeGoAway:
		c.aways = append(c.aways, away(c.t, payload))
	case typeSettings:
		if flags&flagAck == 0 {
			c.send(frame(typeSettings, flagAck, 0))
		}
	}
	if (typ == 0 || typ == typeHeaders) && flags&1 != 0 {
		c.ended[id] = true
	}
	return typ, payload, nil
}

// until reads to a frame of this type, and returns its payload.
func (c *client) until(typ byte) []byte {
	c.t.Helper()
	for {
		got, payload, err := c.read()
		if err != nil {
			c.t.Fatalf("waiting for a frame of type %d: %v", typ, err)
		}
		if got == typ {
			return payload
		}
	}
}

// answered reads until the answer has come to its end.
func (c *client) answered(id uint32, body string) {
	c.t.Helper()
	for !c.ended[id] {
		if _, _, err := c.read(); err != nil {
			c.t.Fatalf("stream %d: %v", id, err)
		}
	}
	if got := string(*c.bodies[id]); got != body {
		c.t.Errorf("stream %d: answered %.40q, want %.40q", id, got, body)
	}
}

// away checks a GOAWAY, and returns its last id.
func away(t testing.TB, payload []byte) uint32 {
	t.Helper()
	if len(payload) < 8 || binary.BigEndian.Uint32(payload[4:]) != 0 {
		t.Fatalf("GOAWAY says %x, want no error", payload)
	}
	return binary.BigEndian.Uint32(payload)
}

// ends reads to the end of the connection: these were the last ids of all GOAWAYs.
func (c *client) ends(aways ...uint32) {
	c.t.Helper()
	for {
		if _, _, err := c.read(); err == io.EOF {
			break
		} else if err != nil {
			c.t.Fatalf("the connection ended with %v", err)
		}
	}
	if !slices.Equal(c.aways, aways) {
		c.t.Errorf("GOAWAY said %d, want %d", c.aways, aways)
	}
}
