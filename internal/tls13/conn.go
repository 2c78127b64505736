package tls13

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// A Conn is the server's side of a TLS 1.3 connection after its handshake, made of a
// [State]. It behaves as a *tls.Conn does, and writes the same bytes, but for these: it
// changes its key in time (see sealLimit); it writes nothing once it has sent
// close_notify or a fatal alert; it refuses a record without a content type (RFC 8446,
// 5.4); and of the client's handshake messages it reads KeyUpdate only, and refuses all
// others by their first bytes.
//
// Its methods may be called at any time from several goroutines, as those of a net.Conn.
type Conn struct {
	conn  net.Conn
	state tls.ConnectionState

	closed atomic.Bool

	in struct {
		sync.Mutex // guards the following; held while something is read
		half
		input
	}
	out struct {
		sync.Mutex // guards the following; held while something is written
		half
		output
	}
}

// output is what the writing direction has besides its keys.
type output struct {
	err       error // the first one; nothing is written after it
	closeSent bool
	closeErr  error
	limit     uint64 // sealLimit, but in tests
	// records and bytes count what Write has sent: see payloadSize.
	records int
	bytes   int
}

// New makes a Conn of s over conn. cs is what its ConnectionState is to say: that of
// the former connection if this process had it, or else what [Covers] has returned. New
// empties s, also if it fails, so that no second Conn can be made of it. Nothing is read
// or written before the first call of Read, Write, Close or CloseWrite.
func New(conn net.Conn, s *State, cs tls.ConnectionState) (*Conn, error) {
	own := *s
	*s = State{}
	if err := own.check(); err != nil {
		own.Wipe()
		return nil, err
	}
	suite, err := suiteOf(own.Suite)
	if err != nil {
		own.Wipe()
		return nil, err
	}
	c := &Conn{conn: conn, state: cs}
	c.in.suite, c.out.suite, c.out.limit = suite, suite, sealLimit
	if err := errors.Join(c.in.set(own.In.Secret, own.In.Seq), c.out.set(own.Out.Secret, own.Out.Seq)); err != nil {
		own.Wipe()
		return nil, err
	}
	c.in.raw, c.in.end, c.in.plain = own.Raw, len(own.Raw), own.Plain
	return c, nil
}

// Extract takes the connection out of c, for another process or for another Conn. It
// is an error, and c stays as it is, while a Read or a Write is under way, after a close
// or an error, and in the middle of a handshake message. After it c is dead: Read and
// Write return an error, and Close neither writes nor closes the connection below,
// which is the caller's again.
func (c *Conn) Extract() (State, error) {
	if !c.in.TryLock() {
		return State{}, errors.New("tls13: a Read is under way")
	}
	defer c.in.Unlock()
	if !c.out.TryLock() {
		return State{}, errors.New("tls13: a Write is under way")
	}
	defer c.out.Unlock()
	switch {
	case c.in.err != nil:
		return State{}, fmt.Errorf("tls13: the connection can't be read any more: %w", c.in.err)
	case c.out.err != nil:
		return State{}, fmt.Errorf("tls13: the connection can't be written to any more: %w", c.out.err)
	case c.out.closeSent || c.closed.Load():
		return State{}, errors.New("tls13: the connection is closed")
	case len(c.in.hand) > 0:
		return State{}, errHalfMessage
	}
	var s State
	s.describe(&c.state)
	s.Raw, s.Plain = c.in.raw[c.in.start:c.in.end], c.in.plain
	s.In, s.Out = Half{c.in.secret, c.in.seq}, Half{c.out.secret, c.out.seq}
	if err := s.check(); err != nil {
		return State{}, err
	}
	s.Raw, s.Plain = append([]byte(nil), s.Raw...), append([]byte(nil), s.Plain...)
	s.In, s.Out = c.in.take(), c.out.take()
	clear(c.in.raw[:cap(c.in.raw)])
	c.in.input, c.out.output = input{err: errMoved}, output{err: errMoved}
	return s, nil
}

var errHalfMessage = errors.New("tls13: half a handshake message was read")

// LocalAddr is that of the connection below, and so is RemoteAddr.
func (c *Conn) LocalAddr() net.Addr  { return c.conn.LocalAddr() }
func (c *Conn) RemoteAddr() net.Addr { return c.conn.RemoteAddr() }

// SetDeadline, SetReadDeadline and SetWriteDeadline set the deadlines of the connection
// below. A Read that has timed out can be repeated; a Write can't, since a part of its
// record may be on the wire.
func (c *Conn) SetDeadline(t time.Time) error      { return c.conn.SetDeadline(t) }
func (c *Conn) SetReadDeadline(t time.Time) error  { return c.conn.SetReadDeadline(t) }
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.conn.SetWriteDeadline(t) }

// NetConn is the connection below. To read from it, or to write to it, ends the TLS
// connection.
func (c *Conn) NetConn() net.Conn { return c.conn }

// ConnectionState tells of the handshake that the connection once had: see
// [State.ConnectionState].
func (c *Conn) ConnectionState() tls.ConnectionState { return c.state }

// Write writes p, in as many records as that takes.
func (c *Conn) Write(p []byte) (int, error) {
	if c.closed.Load() {
		return 0, net.ErrClosed
	}
	c.out.Lock()
	defer c.out.Unlock()
	if c.closed.Load() {
		return 0, net.ErrClosed
	}
	if c.out.err == nil && c.out.closeSent {
		return 0, errShutdown
	}
	done := 0
	for {
		if c.out.err != nil {
			return done, c.out.err
		}
		if len(p) == done {
			return done, nil
		}
		n := min(len(p)-done, c.out.payloadSize())
		if c.writeRecord(recordData, p[done:done+n]) == nil {
			done += n
		}
	}
}

var errShutdown = errors.New("tls13: CloseWrite was called")

const (
	// firstPayload is how much data fits into a record that fits into a segment of TCP
	// over IPv6: 1,280 bytes, less 72 of headers, as crypto/tls counts.
	firstPayload = 1280 - 72 - headerLen - 1 - tagLen
	// rampBytes is how much is written before each record is as large as may be.
	rampBytes = 128 << 10
)

// payloadSize returns how much data the next record may carry. The first ones after an
// idle time are small and then grow, as those of crypto/tls do on a new connection: what
// they carry can be read before a whole window of TCP has come.
func (o *output) payloadSize() int {
	if o.bytes >= rampBytes {
		return maxPlaintext
	}
	o.records++
	return min(firstPayload*o.records, maxPlaintext)
}

// outBufs are buffers for a record that is being written.
var outBufs = sync.Pool{New: func() any {
	b := make([]byte, 0, maxRecord)
	return &b
}}

// writeRecord seals and writes a record; first a KeyUpdate, when the key was used often
// enough. c.out is locked, and c.out.err is nil; it is set if this fails.
func (c *Conn) writeRecord(typ byte, p []byte) error {
	if c.out.seq >= c.out.limit {
		if err := c.rekey(false); err != nil {
			return err
		}
	}
	return c.sealAndWrite(typ, p)
}

// rekey sends a KeyUpdate and goes on with the next key. With ask the client is to do
// the same. c.out is locked.
func (c *Conn) rekey(ask bool) error {
	m := []byte{handKeyUpdate, 0, 0, 1, 0}
	if ask {
		m[4] = 1
	}
	if err := c.sealAndWrite(recordHandshake, m); err != nil {
		return err
	}
	if err := c.out.update(); err != nil {
		c.out.fail(err)
		return err
	}
	return nil
}

// updateKeys changes the keys at once.
func (c *Conn) updateKeys(ask bool) error {
	c.out.Lock()
	defer c.out.Unlock()
	if c.out.err != nil {
		return c.out.err
	}
	return c.rekey(ask)
}

func (c *Conn) sealAndWrite(typ byte, p []byte) error {
	buf := outBufs.Get().(*[]byte)
	defer outBufs.Put(buf)
	record, err := c.out.seal((*buf)[:0], typ, p)
	if err == nil {
		_, err = c.conn.Write(record)
	}
	if err != nil {
		return c.out.fail(err)
	}
	c.out.bytes += len(record)
	return nil
}

// fail notes the error that ends writing, and returns it.
func (o *output) fail(err error) error {
	if e, ok := err.(net.Error); ok {
		err = permanentError{e}
	}
	o.err = err
	return err
}

// A permanentError is the error of a Write that failed in the middle of a record, so
// that no later one can succeed: http.Server goes on after a temporary one.
type permanentError struct{ err net.Error }

func (e permanentError) Error() string { return e.err.Error() }
func (e permanentError) Unwrap() error { return e.err }
func (e permanentError) Timeout() bool { return e.err.Timeout() }
func (permanentError) Temporary() bool { return false }

// alert sends an alert, after which nothing more is written unless it is close_notify,
// and returns it as an error. c.out is locked.
func (c *Conn) alert(a tls.AlertError) error {
	level := byte(2)
	if a == alertCloseNotify {
		level = 1
	}
	if c.out.err == nil && (a == alertCloseNotify || !c.out.closeSent) {
		if err := c.writeRecord(recordAlert, []byte{level, byte(a)}); err != nil {
			return err
		}
	}
	if a == alertCloseNotify {
		return nil
	}
	err := &net.OpError{Op: "local error", Err: a}
	if c.out.err == nil {
		c.out.fail(err)
	}
	return err
}

// closePatience is how long the close_notify of Close may take, as that of crypto/tls.
const closePatience = 5 * time.Second

// Close sends close_notify and closes the connection below. If a Write is under way
// it does the latter only, which ends the Write.
func (c *Conn) Close() error {
	if c.closed.Swap(true) {
		return net.ErrClosed
	}
	var err error
	if c.out.TryLock() {
		if errors.Is(c.out.err, errMoved) {
			c.out.Unlock()
			return nil
		}
		if c.out.err == nil {
			err = c.closeNotify()
		}
		c.out.Unlock()
	}
	if e := c.conn.Close(); e != nil {
		return e
	}
	if err != nil {
		return fmt.Errorf("tls13: close_notify could not be sent, but the connection is closed: %w", err)
	}
	return nil
}

// CloseWrite sends close_notify: no Write succeeds after it. The connection below stays
// open both ways.
func (c *Conn) CloseWrite() error {
	c.out.Lock()
	defer c.out.Unlock()
	if c.out.err != nil {
		return c.out.err
	}
	return c.closeNotify()
}

func (c *Conn) closeNotify() error {
	if !c.out.closeSent {
		c.out.closeSent = true
		c.conn.SetWriteDeadline(time.Now().Add(closePatience))
		c.out.closeErr = c.alert(alertCloseNotify)
		c.conn.SetWriteDeadline(time.Now()) // nothing may be written any more
	}
	return c.out.closeErr
}
