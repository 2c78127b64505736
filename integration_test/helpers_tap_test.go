//go:build linux

package integration_test

import (
	"bufio"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/julofinance/grace/v3/internal/proctest"
)

// An http2Tap passes on what clients of HTTP/2 send, and counts the streams that they
// begin. Where there is TLS it ends here, and begins anew towards the server.
type http2Tap struct {
	ln      net.Listener
	dial    func() (net.Conn, error)
	streams atomic.Int64
	work    sync.WaitGroup
}

func newHTTP2Tap(t testing.TB, s *loadServer, way, addr string) *http2Tap {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &http2Tap{ln: ln, dial: func() (net.Conn, error) { return net.DialTimeout("tcp", addr, proctest.Limit) }}
	if way == "tls" {
		dir := filepath.Dir(s.pidFile)
		cert, err := tls.LoadX509KeyPair(filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"))
		if err != nil {
			t.Fatal(err)
		}
		p.ln = tls.NewListener(ln, &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"h2"}})
		trust := s.tlsConfig()
		trust.NextProtos = []string{"h2"}
		plain := p.dial
		p.dial = func() (net.Conn, error) {
			c, err := plain()
			if err != nil {
				return nil, err
			}
			return tls.Client(c, trust), nil
		}
	}
	p.work.Go(func() {
		for {
			c, err := p.ln.Accept()
			if err != nil {
				return
			}
			p.work.Go(func() { p.serve(c) })
		}
	})
	t.Cleanup(func() { p.ln.Close() })
	return p
}

// close waits until the clients have closed their connections.
func (p *http2Tap) close() {
	p.ln.Close()
	p.work.Wait()
}

func (p *http2Tap) serve(client net.Conn) {
	defer client.Close()
	server, err := p.dial()
	if err != nil {
		return
	}
	defer server.Close()
	var both sync.WaitGroup
	both.Go(func() {
		p.pass(client, server)
		closeWrite(server)
	})
	both.Go(func() {
		io.Copy(client, server)
		closeWrite(client)
	})
	both.Wait()
}

func closeWrite(c net.Conn) { c.(interface{ CloseWrite() error }).CloseWrite() }

// pass passes on frame by frame. What the server does not take any more is counted as well.
func (p *http2Tap) pass(client, server net.Conn) {
	in := bufio.NewReader(client)
	out := bufio.NewWriter(server)
	const preface, head, headers = 24, 9, 1 // RFC 9113, sections 3.4, 4.1 and 6.2
	if _, err := io.CopyN(out, in, preface); err != nil {
		return
	}
	for {
		if in.Buffered() < head {
			out.Flush()
		}
		h, err := in.Peek(head)
		if err != nil {
			return
		}
		size := int64(binary.BigEndian.Uint32(h) >> 8)
		if h[3] == headers {
			p.streams.Add(1)
		}
		if n, err := io.CopyN(out, in, head+size); err != nil {
			if _, err := io.CopyN(io.Discard, in, head+size-n); err != nil {
				return
			}
		}
	}
}
