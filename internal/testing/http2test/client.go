// Package http2test has a client of HTTP/2 that sends no request a second time, and
// none at all where it was told to go away: what fails is what a server has lost.
//
// Go's own client is not such a one. It sends again what it can, and a request that
// it has given to a connection at the moment of a GOAWAY fails, if its body can't be
// read a second time, though not a byte of it was sent: "cannot rewind body after
// connection loss".
package http2test

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// ErrNotServed is that of a request that the server has said it does not serve.
var ErrNotServed = errors.New("it is not served")

// Of the frames that are told apart, RFC 9113, section 6.
const (
	typeData         = 0
	typeHeaders      = 1
	typeReset        = 3
	typeSettings     = 4
	typePing         = 6
	typeGoAway       = 7
	typeWindowUpdate = 8

	flagAck        = 1
	flagEndStream  = 1
	flagEndHeaders = 4
)

// Preface is what a client sends first.
const Preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// AppendFrame appends a frame.
func AppendFrame(b []byte, typ, flags byte, stream uint32, payload ...byte) []byte {
	n := len(payload)
	b = append(b, byte(n>>16), byte(n>>8), byte(n), typ, flags)
	return append(binary.BigEndian.AppendUint32(b, stream), payload...)
}

// PostHeader is the header block of a POST, not compressed (RFC 7541, section 6.2.2).
// The path has less than 127 bytes.
func PostHeader(path string) (b []byte) {
	for _, f := range [][2]string{{":method", "POST"}, {":scheme", "http"}, {":path", path}, {":authority", "a"}} {
		b = append(b, 0, byte(len(f[0])))
		b = append(b, f[0]...)
		b = append(b, byte(len(f[1])))
		b = append(b, f[1]...)
	}
	return b
}

// A Client asks over one connection, and over the next one when it was told to go away.
type Client struct {
	// Limit is how long an answer may take; 0: as long as it likes. If it is over, the
	// request has failed, and its connection is closed.
	Limit time.Duration
	// Stays leaves it to the server to close a connection that was told to go away. It must be
	// set before the first request.
	Stays bool

	dial func() (net.Conn, error)

	mu    sync.Mutex
	conns []*clientConn
}

// NewClient returns a client that connects with dial, after a TLS handshake if the
// server expects that.
func NewClient(dial func() (net.Conn, error)) *Client { return &Client{dial: dial} }

// Dials returns how often it has connected.
func (c *Client) Dials() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.conns)
}

// GoAways returns which streams the GOAWAYs of each connection have named as the last.
func (c *Client) GoAways() (all []uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, cc := range c.conns {
		cc.mu.Lock()
		all = append(all, cc.aways...)
		cc.mu.Unlock()
	}
	return all
}

// Close closes its connections.
func (c *Client) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, cc := range c.conns {
		cc.c.Close()
	}
}

// Post sends the body in pieces, no more than 16 kB each and some kB at all, and
// returns that of the answer. Requests may be made at the same time.
func (c *Client) Post(path string, body ...string) (string, error) {
	cc, a, err := c.begin(path)
	if err != nil {
		return "", err
	}
	for i, piece := range body {
		flags := byte(0)
		if i == len(body)-1 {
			flags = flagEndStream
		}
		cc.mu.Lock()
		_, err := cc.c.Write(AppendFrame(nil, typeData, flags, a.id, []byte(piece)...))
		cc.mu.Unlock()
		if err != nil {
			return "", fmt.Errorf("stream %d: sending the body: %w", a.id, err)
		}
	}
	if c.Limit > 0 {
		limit := time.AfterFunc(c.Limit, func() { cc.giveUp(a.id, os.ErrDeadlineExceeded) })
		defer limit.Stop()
	}
	<-a.done
	return string(a.body), a.err
}

// begin sends a header, over a connection that was not told to go away.
func (c *Client) begin(path string) (*clientConn, *answer, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for range 2 {
		if n := len(c.conns); n > 0 {
			if a, err := c.conns[n-1].begin(path); a != nil || err != nil {
				return c.conns[n-1], a, err
			}
		}
		conn, err := c.dial()
		if err != nil {
			return nil, nil, err
		}
		cc := &clientConn{c: conn, stays: c.Stays, in: bufio.NewReader(conn), answers: map[uint32]*answer{}, next: 1}
		// Windows as large as can be: answers wait for none.
		hello := AppendFrame([]byte(Preface), typeSettings, 0, 0, 0, 4, 0x7f, 0xff, 0xff, 0xff)
		if _, err := conn.Write(AppendFrame(hello, typeWindowUpdate, 0, 0, 0x7f, 0xff, 0, 0)); err != nil {
			return nil, nil, err
		}
		c.conns = append(c.conns, cc)
		go cc.read()
	}
	return nil, nil, errors.New("a connection that is new was told to go away before its first request")
}

// A clientConn is one connection.
type clientConn struct {
	c     net.Conn
	in    *bufio.Reader
	stays bool

	mu      sync.Mutex // guards what follows, and each write
	next    uint32     // stream
	away    bool       // it was told to go away, or has ended
	aways   []uint32   // see Client.GoAways
	answers map[uint32]*answer
}

// An answer is what comes on a stream.
type answer struct {
	id   uint32
	body []byte
	err  error
	done chan struct{}
}

// begin returns nil if the connection is not to be used.
func (cc *clientConn) begin(path string) (*answer, error) {
	cc.mu.Lock()
	defer cc.mu.Unlock()
	if cc.away {
		return nil, nil
	}
	a := &answer{id: cc.next, done: make(chan struct{})}
	cc.next += 2
	if _, err := cc.c.Write(AppendFrame(nil, typeHeaders, flagEndHeaders, a.id, PostHeader(path)...)); err != nil {
		return nil, fmt.Errorf("stream %d: sending the header: %w", a.id, err)
	}
	cc.answers[a.id] = a
	return a, nil
}

// read reads to the end.
func (cc *clientConn) read() {
	err := error(nil)
	for err == nil {
		err = cc.readFrame()
	}
	cc.mu.Lock()
	defer cc.mu.Unlock()
	cc.away = true
	for id := range cc.answers {
		cc.end(id, fmt.Errorf("the connection has ended: %w", err))
	}
	cc.c.Close()
}

func (cc *clientConn) readFrame() error {
	var head [9]byte
	if _, err := io.ReadFull(cc.in, head[:]); err != nil {
		return err
	}
	payload := make([]byte, binary.BigEndian.Uint32(head[:])>>8)
	if _, err := io.ReadFull(cc.in, payload); err != nil {
		return err
	}
	typ, flags, id := head[3], head[4], binary.BigEndian.Uint32(head[5:])
	cc.mu.Lock()
	defer cc.mu.Unlock()
	a := cc.answers[id]
	switch {
	case typ == typePing && flags&flagAck == 0:
		_, err := cc.c.Write(AppendFrame(nil, typePing, flagAck, 0, payload...))
		return err
	case typ == typeSettings && flags&flagAck == 0:
		_, err := cc.c.Write(AppendFrame(nil, typeSettings, flagAck, 0))
		return err
	case typ == typeGoAway:
		cc.away = true
		last := binary.BigEndian.Uint32(payload)
		cc.aways = append(cc.aways, last)
		for id := range cc.answers {
			if id > last {
				cc.end(id, fmt.Errorf("%w: GOAWAY names stream %d as the last", ErrNotServed, last))
			}
		}
	case a == nil:
	case typ == typeReset:
		cc.end(id, fmt.Errorf("reset, %d", payload))
	case typ == typeHeaders && len(a.body) == 0 && flags&flagEndStream == 0 && !isOK(payload):
		cc.end(id, fmt.Errorf("the answer begins with %#x", payload[:min(len(payload), 8)]))
	case typ == typeData:
		a.body = append(a.body, payload...)
		fallthrough
	case typ == typeHeaders:
		if flags&flagEndStream != 0 {
			cc.end(id, nil)
		}
	}
	if cc.away && len(cc.answers) == 0 && !cc.stays {
		return errors.New("closed, as nothing is to come") // like most clients
	}
	return nil
}

// isOK reports whether a header block begins with :status 200 (RFC 7541, appendix A), after
// updates of the table's size (section 6.3), such as nginx sends first.
func isOK(block []byte) bool {
	for len(block) > 0 && block[0]&0xe0 == 0x20 {
		block = block[1:]
	}
	return len(block) > 0 && block[0] == 0x88
}

// giveUp ends an answer that has not come, and the connection.
func (cc *clientConn) giveUp(id uint32, err error) {
	cc.mu.Lock()
	defer cc.mu.Unlock()
	if cc.answers[id] != nil {
		cc.end(id, err)
		cc.c.Close()
	}
}

// end ends an answer. mu is held.
func (cc *clientConn) end(id uint32, err error) {
	a := cc.answers[id]
	delete(cc.answers, id)
	if err != nil {
		a.err = fmt.Errorf("stream %d: %w", id, err)
	}
	close(a.done)
}
