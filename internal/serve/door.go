package serve

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/julofinance/grace/v3/internal/sockets"
	"github.com/julofinance/grace/v3/internal/tls13"
)

// A door accepts connections whose protocol is not known before something has
// been read: TLS, where ALPN tells, and plaintext that may be HTTP/2. Each one is
// looked at in a goroutine of its own, so that a slow client delays no other, and
// then given to the twin, or to the server of HTTP/1, whose listener the door is.
// What needs no look passes through.
//
// Until then the door does what net/http would: it calls BaseContext, ConnContext
// and ConnState, bounds the handshake, and logs what goes wrong.
type door struct {
	net.Listener                     // the user's
	own          []*sockets.Listener // that it is, or wraps
	s            *httpServer
	config       *tls.Config     // of HTTPS; nil if the listener may do TLS itself
	through      *tls13.Listener // the user's, if what it does is known; connections come from below it
	tickets      *sessionTickets // of config; nil if its ticket keys are not ours
	unencrypted  bool            // HTTP/2 without TLS is spoken here
	moves        bool            // what does TLS 1.3 and HTTP/1 can be moved

	out chan accepted

	mu   sync.Mutex
	base context.Context // what BaseContext gave; guarded by mu
}

// A visit is the door for one Serve of a server: another one may come after it,
// if a drain is called off. Close ends it, also before Serve has come to Accept.
type visit struct {
	*door
	begin, end sync.Once
	closed     chan struct{}
}

type accepted struct {
	conn net.Conn
	err  error
}

func newDoor(s *httpServer, ln net.Listener) *door {
	return &door{Listener: ln, s: s, out: make(chan accepted)}
}

// open begins a visit.
func (d *door) open() *visit {
	return &visit{door: d, closed: make(chan struct{})}
}

// Accept returns the HTTP/1 connections.
func (v *visit) Accept() (net.Conn, error) {
	v.begin.Do(func() { go v.run(v.closed) })
	select {
	case a := <-v.out:
		select {
		case <-v.closed: // for the server that comes next
			if a.conn != nil {
				go v.give(a.conn)
			}
			return nil, net.ErrClosed
		default:
		}
		return a.conn, a.err
	case <-v.closed:
		return nil, net.ErrClosed
	}
}

// Close ends Accept. The user's listener is closed at the end only, since it may
// not survive that.
func (v *visit) Close() error {
	v.end.Do(func() { close(v.closed) })
	return nil
}

// run accepts until closed is closed. It passes errors on to net/http, which may
// end the server then. That must not happen while connections can still come to
// it: while the process ends, an error waits until that is called off, or
// over.
func (d *door) run(closed chan struct{}) {
	for {
		resumed := d.s.whenResumed()
		c, err := d.accept()
		if err == nil {
			d.meet(c)
		} else if ends, back := d.s.ending(err); ends {
			again, drained := d.s.awaitBack(closed, resumed, back, d.own)
			if !again {
				return
			}
			if !drained { // Serve need not be called again
				err = nil
			}
		}
		if err != nil {
			select {
			case d.out <- accepted{err: err}:
				//lint:ignore SA1019 net/http asks for the same, waits a little, and accepts again
				if ne, ok := err.(net.Error); ok && ne.Temporary() {
					continue
				}
				return
			case <-closed:
			}
		}
		select {
		case <-closed:
			return
		default:
		}
	}
}

// accept accepts from the user's listener; below TLS, where that can be, since a connection
// that was moved has its TLS.
func (d *door) accept() (net.Conn, error) {
	if d.through != nil {
		return d.through.Below.Accept()
	}
	return d.Listener.Accept()
}

// A handshaker is a *tls.Conn, or what takes its place.
type handshaker interface {
	net.Conn
	HandshakeContext(context.Context) error
	ConnectionState() tls.ConnectionState
}

// meet sees to a connection that was accepted.
func (d *door) meet(c net.Conn) {
	if _, ok := c.(*sockets.TLSConn); ok { // it was moved, and its handshake was elsewhere
		d.give(c)
		return
	}
	if d.config != nil {
		d.tickets.renew()
		c = tls.Server(c, d.config)
	}
	if d.through != nil {
		over, err := d.through.Server(c)
		if err != nil { // not reached: Through has tried it
			d.s.logf("http: TLS can't be served to %v: %v", c.RemoteAddr(), err)
			c.Close()
			return
		}
		c = over
	}
	if h, ok := c.(handshaker); ok && reflect.TypeOf(c).Comparable() {
		ctx := d.greet(c)
		go d.attend(c, func() (bool, error) { return d.handshake(ctx, h) })
		return
	}
	if _, ok := c.(interface{ ConnectionState() tls.ConnectionState }); ok || !d.unencrypted {
		d.give(c) // without TLS, for net/http, is what has no such method
		return
	}
	switch c.(type) {
	case *sockets.TCPConn, *sockets.UnixConn:
	default:
		d.s.peeks.Store(true)
		c = &peekedConn{Conn: c}
	}
	d.greet(c)
	go d.attend(c, func() (bool, error) { return d.peek(c) })
}

// give is false if the process ends, or the server was ended by the program, and
// so nothing takes c.
func (d *door) give(c net.Conn) bool {
	select {
	case d.out <- accepted{conn: c}:
		return true
	case <-d.s.finished:
	case <-d.s.userEnded:
	}
	c.Close()
	return false
}

// greet calls the hooks of a new connection, as net/http does in its Serve.
func (d *door) greet(c net.Conn) context.Context {
	d.mu.Lock()
	ctx := d.base
	d.mu.Unlock()
	ctx = d.s.newContext(context.WithValue(ctx, http.ServerContextKey, d.s.contextServer()), c)
	d.s.connState(c, http.StateNew)
	d.s.arrivals.add(c, ctx)
	if d.s.ends() {
		d.s.boundArrival(c)
	}
	return ctx
}

// attend finds out whether c is HTTP/2, and gives it to the server that serves
// that.
func (d *door) attend(c net.Conn, look func() (http2 bool, err error)) {
	over := true
	defer func() {
		if err := recover(); err != nil { // in the user's GetCertificate, say
			buf := make([]byte, 64<<10)
			d.s.logf("http: panic serving %v: %v\n%s", c.RemoteAddr(), err, buf[:runtime.Stack(buf, false)])
		}
		if over {
			d.s.arrivals.remove(c)
			c.Close()
			d.s.connState(c, http.StateClosed)
		}
	}()
	http2, err := look()
	if err != nil || !d.s.arrivals.settle(c) {
		return
	}
	if !http2 {
		over = !d.give(d.enclose(c))
		return
	}
	if err := d.s.serveHTTP2(c); errors.Is(err, http.ErrServerClosed) {
		return
	} else if err != nil {
		d.s.logf("http: HTTP/2 can't be served to %v: %v", c.RemoteAddr(), err)
		return
	}
	over = false
}

// handshake does what net/http does before it looks at ALPN.
func (d *door) handshake(ctx context.Context, c handshaker) (http2 bool, err error) {
	timeout := handshakeTimeout(d.s.template)
	if timeout > 0 {
		end := time.Now().Add(timeout)
		c.SetReadDeadline(end)
		c.SetWriteDeadline(end)
	}
	if err := c.HandshakeContext(context.WithValue(ctx, http.LocalAddrContextKey, c.LocalAddr())); err != nil {
		reason := err.Error()
		if re, ok := err.(tls.RecordHeaderError); ok && re.Conn != nil && looksLikeHTTP(re.RecordHeader) {
			io.WriteString(re.Conn, "HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n")
			re.Conn.Close()
			reason = "client sent an HTTP request to an HTTPS server"
		}
		d.s.logf("http: TLS handshake error from %s: %v", c.RemoteAddr(), reason)
		return false, err
	}
	if timeout > 0 {
		c.SetReadDeadline(time.Time{})
		c.SetWriteDeadline(time.Time{})
	}
	if t := d.s.trackOf(c); t != nil {
		t.AwaitRequest()
	}
	return d.s.isHTTP2(c.ConnectionState().NegotiatedProtocol), nil
}

// isHTTP2 reports whether the twin serves the protocol that ALPN has agreed on.
func (s *httpServer) isHTTP2(proto string) bool {
	return proto == "h2" || proto != "http/1.1" && s.template.TLSNextProto[proto] != nil
}

// handshakeTimeout is that of net/http.
func handshakeTimeout(s *http.Server) (least time.Duration) {
	for _, d := range []time.Duration{s.ReadHeaderTimeout, s.ReadTimeout, s.WriteTimeout} {
		if d > 0 && (least == 0 || d < least) {
			least = d
		}
	}
	return least
}

func looksLikeHTTP(header [5]byte) bool {
	switch string(header[:]) {
	case "GET /", "HEAD ", "POST ", "PUT /", "OPTIO":
		return true
	}
	return false
}

// preface is the first line of a client that knows that HTTP/2 is spoken here. No
// HTTP/1 request has this line.
const preface = "PRI * HTTP/2.0"

// peek reads no more than it needs to tell the protocols apart, and gives that
// back. Until then the connection is one that has asked for nothing, and moves as
// such.
func (d *door) peek(c net.Conn) (http2 bool, err error) {
	timeout := d.s.template.ReadHeaderTimeout
	if timeout == 0 {
		timeout = d.s.template.ReadTimeout
	}
	if timeout > 0 {
		c.SetReadDeadline(time.Now().Add(timeout))
	}
	b := make([]byte, 0, len(preface))
	for len(b) < len(preface) && err == nil && strings.HasPrefix(preface, string(b)) {
		var n int
		n, err = c.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
	}
	// After a part of a line net/http may still have to answer or to report
	// something.
	if err != nil && (len(b) == 0 || d.s.ends()) {
		return false, err
	}
	if p, ok := c.(*peekedConn); ok {
		p.unread = b
	} else {
		sockets.TrackOf(c).Unpeek(b)
	}
	if timeout > 0 {
		c.SetReadDeadline(time.Time{})
	}
	return string(b) == preface, nil
}

// A peekedConn is a connection that is not ours: a listener has wrapped it.
type peekedConn struct {
	net.Conn
	unread []byte
}

func (c *peekedConn) Read(p []byte) (int, error) {
	if len(c.unread) > 0 {
		n := copy(p, c.unread)
		c.unread = c.unread[n:]
		return n, nil
	}
	return c.Conn.Read(p)
}

// CloseWrite is needed by net/http, to end without a reset.
func (c *peekedConn) CloseWrite() error {
	if h, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return errors.ErrUnsupported
}

// ReadFrom is there for connections that have it: net/http looks for it.
func (c *peekedConn) ReadFrom(r io.Reader) (int64, error) {
	if rf, ok := c.Conn.(io.ReaderFrom); ok {
		return rf.ReadFrom(r)
	}
	return io.Copy(struct{ io.Writer }{c.Conn}, r)
}

// hookConn returns the connection as the user's hooks know it.
func hookConn(c net.Conn) net.Conn {
	if p, ok := c.(*peekedConn); ok {
		return p.Conn
	}
	return c
}

func (s *httpServer) logf(format string, args ...any) {
	if l := s.template.ErrorLog; l != nil {
		l.Printf(format, args...)
		return
	}
	log.Printf(format, args...)
}
