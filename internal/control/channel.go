// Package control carries messages, with descriptors, between two processes over a unix
// socket, so that a process that does not read, or a kernel that is short of something,
// neither blocks the sender nor loses a message unnoticed.
//
// The package does not know what the messages mean: that is in handoff.go of the root.
package control

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/julofinance/grace/v3/internal/fd"
)

// A Channel is one end of the control channel. It never blocks its caller: what the
// kernel does not take at once is queued, and written by a goroutine. Another goroutine
// reads.
//
// What the kernel refuses for a while, because it has no memory or the user has
// too many descriptors in flight (unix(7): ENOBUFS, ENOMEM, ETOOMANYREFS), is
// tried again, in order, in both directions. So a message arrives, or its sender
// is told that it does not. A channel that is read to its end stays open: its close
// is how the kernel tells the other process that this one is dead.
//
// mu guards queue, busy, err and refused. No function of the caller's is called with mu
// held. in and inFDs belong to the goroutine that reads.
type Channel struct {
	conn   *net.UnixConn
	most   int           // bytes of a payload that is read, at most
	wake   chan struct{} // buffered 1: something was queued, or closed
	closed chan struct{}

	mu      sync.Mutex
	queue   []*outgoing
	busy    bool // the goroutine that writes has one that is not in the queue any more
	err     error
	refused error // why the kernel does not take what is being written

	buf   []byte  // that is read into
	in    []byte  // read, not yet parsed
	inFDs []batch // received, not yet given to a message
}

// A batch is the descriptors that came with the bytes of in up to end. They belong to
// the last frame that begins before end. So when the kernel drops a frame's descriptors,
// because the table is full, the frame does not get those of the next one.
type batch struct {
	end int
	fds []int
}

// An outgoing is a frame, or the rest of one; it is empty for a flush.
type outgoing struct {
	frame []byte
	fds   []int
	sent  func(error) // may be nil
	until time.Time   // zero: it may take as long as the channel is there
	begun bool        // some of it is written, and it can't be taken back
	whole []byte      // all of a frame that is secret
}

// newOutgoing makes one of m.
func newOutgoing(m Message, sent func(error)) *outgoing {
	o := &outgoing{frame: m.Frame(), fds: m.FDs, sent: sent}
	if m.Secret {
		clear(m.Payload)
		o.whole = o.frame
	}
	return o
}

// wipe is called when o is written, or will not be.
func (o *outgoing) wipe() { clear(o.whole) }

var (
	// ErrNotSent means that the kernel took nothing of a message in time.
	ErrNotSent = errors.New("nothing was sent in time")
	// ErrNotRead is wrapped with ErrNotSent if the other end does not read.
	ErrNotRead = errors.New("the other process does not read")
	// ErrCutShort means that the other end has a part of a message, descriptors
	// included, and did not read the rest in time. The rest is still written.
	ErrCutShort = errors.New("the other process did not read it in time")
)

const (
	// What the kernel refuses is tried again after a pause that doubles.
	shortestPause, longestPause = time.Millisecond, 100 * time.Millisecond
	// longestTry is how long a full socket is waited for at a time.
	longestTry = 200 * time.Millisecond
	// What is read at a time: a new process reads little before it is ready, and a
	// large buffer on its stack is memory that it touches first. A process that
	// moves connections reads more.
	smallRead, largeRead = 2 << 10, 16 << 10
	// readPatience is how long the kernel may refuse a read, again and again, until the
	// Channel counts as broken.
	readPatience = 5 * time.Second
)

// New makes a channel of conn, which it owns. Nothing is read before Run or Next.
func New(conn *net.UnixConn) *Channel {
	return &Channel{conn: conn, most: MaxPayload, wake: make(chan struct{}, 1), closed: make(chan struct{})}
}

// Prewrite is send before run, with a larger socket buffer if m is large. What the
// kernel takes now is there for the other process, whatever becomes of this one.
func (c *Channel) Prewrite(m Message) (err error) {
	growSendBuffer(c.conn, frameHeader+len(m.Payload))
	c.SendThen(m, func(e error) { err = e })
	return err
}

// Run starts the channel's two goroutines. One of them calls handle for one message
// after the other, and closed last, with io.EOF if the other end is closed. That alone
// does not prove that the other process is dead.
func (c *Channel) Run(handle func(Message), closed func(error)) {
	c.StartWriting()
	go func() { closed(c.readLoop(handle)) }()
}

// StartWriting is run without a goroutine that reads.
func (c *Channel) StartWriting() { go c.writeLoop() }

// Send sends m.
func (c *Channel) Send(m Message) { c.SendThen(m, nil) }

// SendThen sends m, and calls sent when m was written, or can't be any more; that may
// be before SendThen returns.
func (c *Channel) SendThen(m Message, sent func(error)) {
	c.enqueue(newOutgoing(m, sent))
}

// SendWithin is sendThen with a limit: it calls sent with ErrNotSent or ErrCutShort if m is
// not written when d is over.
func (c *Channel) SendWithin(d time.Duration, m Message, sent func(error)) {
	o := newOutgoing(m, sent)
	o.until = time.Now().Add(d)
	// The message before it may be stuck for longer. Once the writer has o, the writer
	// keeps the limit.
	timer := time.AfterFunc(d, func() {
		if c.withdraw(o) {
			o.wipe()
			sent(c.notSent())
		}
	})
	o.sent = func(err error) { timer.Stop(); sent(err) }
	c.enqueue(o)
}

// withdraw takes o out of the queue, if it is still there, and nothing of it is
// written.
func (c *Channel) withdraw(o *outgoing) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, q := range c.queue {
		if q == o && !o.begun {
			c.queue = append(c.queue[:i:i], c.queue[i+1:]...)
			return true
		}
	}
	return false
}

func (c *Channel) enqueue(o *outgoing) {
	queued, err := c.write(o)
	if queued {
		select {
		case c.wake <- struct{}{}:
		default:
		}
		return
	}
	o.wipe()
	if err != nil {
		c.fail(err)
	}
	if o.sent != nil {
		o.sent(err)
	}
}

// write writes o at once, if nothing is before it and the kernel takes it;
// otherwise what is left of it is queued.
func (c *Channel) write(o *outgoing) (queued bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return false, c.err
	}
	if len(c.queue) == 0 && !c.busy {
		n, err := writeNonblock(c.conn, o.frame, o.fds)
		o.wrote(n)
		if len(o.frame) == 0 || err != nil && !passes(err) {
			return false, err
		}
	}
	c.queue = append(c.queue, o)
	return true, nil
}

// wrote notes that n bytes are written. The descriptors go with the first byte.
func (o *outgoing) wrote(n int) {
	if n > 0 {
		o.frame, o.fds, o.begun = o.frame[n:], nil, true
	}
}

// Peek returns the type of the next message, if a part of that can be read without a wait.
// The message stays to be read by Next.
func (c *Channel) Peek() (t Type, ok bool) {
	if len(c.in) == 0 && c.readable() {
		c.fill() // Next returns the error, if it is one that stays
	}
	if len(c.in) == 0 {
		return 0, false
	}
	return Type(c.in[0]), true
}

// Socket is the channel's own socket: for a deadline of its reads, to end it in one
// direction, and to ask the kernel which process is at the other end.
func (c *Channel) Socket() *net.UnixConn { return c.conn }

// Allow lets the channel read a message that tells of n sockets.
func (c *Channel) Allow(n int) { c.most += maxPerSocket * min(n, 1<<14) }

// Flush waits until everything sent so far is written, or d is over.
func (c *Channel) Flush(d time.Duration) {
	done := make(chan struct{})
	c.enqueue(&outgoing{sent: func(error) { close(done) }})
	select {
	case <-done:
	case <-time.After(d):
	}
}

// Close ends both goroutines. What was queued and not written is dropped.
func (c *Channel) Close() {
	c.fail(net.ErrClosed)
	c.conn.Close()
}

// fail ends writing with err.
func (c *Channel) fail(err error) {
	c.mu.Lock()
	queue := c.queue
	c.queue = nil
	if c.err == nil {
		c.err = err
		close(c.closed)
	}
	c.mu.Unlock()
	for _, o := range queue {
		o.wipe()
		if o.sent != nil {
			o.sent(err)
		}
	}
}

func (c *Channel) writeLoop() {
	for {
		o := c.dequeue()
		if o == nil {
			select {
			case <-c.wake:
			case <-c.closed:
				return
			}
			continue
		}
		err := c.writeOut(o)
		o.wipe()
		if o.sent != nil {
			o.sent(err)
		}
		if err != nil && !errors.Is(err, ErrNotSent) {
			c.fail(err)
			return
		}
	}
}

// dequeue removes and returns the next message to be written, nil if there is none.
func (c *Channel) dequeue() *outgoing {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.busy = len(c.queue) > 0
	if !c.busy {
		return nil
	}
	o := c.queue[0]
	c.queue[0] = nil
	c.queue = c.queue[1:]
	return o
}

// writeOut waits until all of o is written, or until its time is over and nothing of it
// is written.
func (c *Channel) writeOut(o *outgoing) error {
	limited := !o.until.IsZero()
	c.setRefused(nil)
	defer c.conn.SetWriteDeadline(time.Time{})
	for pause := shortestPause; len(o.frame) > 0; {
		// A full socket is waited for, but not for good: should the kernel have
		// said EAGAIN for another reason, nothing would end the wait.
		try := time.Now().Add(longestTry)
		if limited && o.until.Before(try) {
			try = o.until
		}
		c.conn.SetWriteDeadline(try)
		n, err := writeSome(c.conn, o.frame, o.fds)
		o.wrote(n)
		late := limited && !time.Now().Before(o.until)
		switch {
		case n > 0:
			pause = shortestPause
			c.setRefused(nil)
		case err != nil && !passes(err) && !errors.Is(err, os.ErrDeadlineExceeded):
			return err
		case err != nil && passes(err):
			c.setRefused(err)
		}
		switch {
		case len(o.frame) == 0:
		case late && !o.begun:
			return c.notSent()
		case late:
			// The frame must become whole, or the next one could not be read.
			limited = false
			if o.sent != nil {
				o.sent(ErrCutShort)
				o.sent = nil
			}
		case n == 0 && !errors.Is(err, os.ErrDeadlineExceeded):
			select {
			case <-time.After(pause):
			case <-c.closed:
			}
			pause = min(2*pause, longestPause)
		}
	}
	return nil
}

func (c *Channel) setRefused(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refused = err
}

// notSent wraps ErrNotSent and the reason.
func (c *Channel) notSent() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return fmt.Errorf("%w: %w", ErrNotSent, cmp.Or(c.refused, ErrNotRead))
}

func (c *Channel) readLoop(handle func(Message)) error {
	defer func() {
		for _, b := range c.inFDs {
			fd.CloseAll(b.fds)
		}
	}()
	for {
		m, err := c.Next()
		if err != nil {
			return err
		}
		handle(m)
	}
}

// Next returns the next message. Only one goroutine may call it.
func (c *Channel) Next() (Message, error) {
	for {
		if m, ok, err := c.parse(); ok || err != nil {
			return m, err
		}
		if err := c.fill(); err != nil {
			if err == io.EOF && len(c.in) > 0 {
				err = io.ErrUnexpectedEOF
			}
			return Message{}, err
		}
	}
}

// fill reads more of the channel into c.in and c.inFDs.
func (c *Channel) fill() error {
	begun := time.Now()
	for pause := shortestPause; ; pause = min(2*pause, longestPause) {
		err := c.receive()
		if err == nil || !passes(err) {
			return err
		}
		if time.Since(begun) > readPatience {
			return fmt.Errorf("the control channel can't be read for %v: %w", readPatience, err)
		}
		time.Sleep(pause)
	}
}

// parse returns the next message, if c.in has all of it.
func (c *Channel) parse() (m Message, ok bool, err error) {
	if len(c.in) < frameHeader {
		return m, false, nil
	}
	announced := binary.BigEndian.Uint32(c.in[4:])
	if uint64(announced) > uint64(c.most) { // as an int of 32 bit, 2^31 is negative
		return m, false, fmt.Errorf("%w: a message of %d bytes on the control channel", ErrProtocol, announced)
	}
	size := int(announced)
	if len(c.in) < frameHeader+size {
		return m, false, nil
	}
	nfds := int(c.in[1])
	m.Type = Type(c.in[0])
	m.Payload = append([]byte(nil), c.in[frameHeader:frameHeader+size]...)
	rest := append(c.in[:0], c.in[frameHeader+size:]...)
	clear(c.in[len(rest):]) // it may have been secret
	c.in = rest
	if cap(c.in) > keptBuffer && len(c.in) < keptBuffer {
		c.in = append(make([]byte, 0, keptBuffer), c.in...)
	}
	for i := range c.inFDs {
		c.inFDs[i].end -= frameHeader + size
	}
	for len(c.inFDs) > 0 && c.inFDs[0].end <= 0 {
		m.FDs = append(m.FDs, c.inFDs[0].fds...)
		c.inFDs = c.inFDs[1:]
	}
	if len(m.FDs) > nfds { // more than the frame announces: not of this protocol
		fd.CloseAll(m.FDs[nfds:])
		m.FDs = m.FDs[:nfds]
	}
	return m, true, nil
}
