package grace

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

// A channel is one end of the control channel. Send never blocks: what the
// kernel does not take at once is queued, and written by a goroutine. Another
// one reads, and calls handle for each message and closed once at the end.
//
// What the kernel refuses for a while, because it has no memory or the user has
// too many descriptors in flight (unix(7): ENOBUFS, ENOMEM, ETOOMANYREFS), is
// tried again, in order, in both directions. So a message arrives, or whoever
// has sent it is told that it does not; and a channel that is read to its end
// stays open, since its close is how the kernel tells of this process's death.
type channel struct {
	conn *net.UnixConn
	most int // bytes of a payload that is read, at most

	mu      sync.Mutex
	queue   []*outgoing
	busy    bool // the goroutine that writes has one that is not in the queue any more
	err     error
	refused error         // why the kernel does not take what is being written
	wake    chan struct{} // buffered 1: something was queued, or closed
	in      []byte        // read, not yet parsed
	inFDs   []batch       // received, not yet given to a message
	closed  chan struct{}
}

// A batch is the descriptors that came with the bytes of in up to end. They are
// of the last frame that begins before: so descriptors that the kernel dropped,
// because the table was full, never make those of the next frame its own.
type batch struct {
	end int
	fds []int
}

// An outgoing is a frame, or the rest of one; it is empty for a flush.
type outgoing struct {
	frame []byte
	fds   []int
	sent  func(error) // nil: nobody wants to know
	until time.Time   // zero: it may take as long as the channel is there
	begun bool        // some of it is written, and it can't be taken back
}

var (
	// errNotSent: the kernel did not take a message in time, nothing of it.
	errNotSent = errors.New("nothing was sent in time")
	// errNotRead: since the other end does not read. It comes with errNotSent.
	errNotRead = errors.New("the other process does not read")
	// errCutShort: the other end has a part of a message, its descriptors too,
	// and does not read the rest in time. It gets it once it does.
	errCutShort = errors.New("the other process did not read it in time")
)

const (
	// What the kernel refuses is tried again after a pause that doubles.
	shortestPause, longestPause = time.Millisecond, 100 * time.Millisecond
	// longestTry is how long a full socket is waited for at a time.
	longestTry = 200 * time.Millisecond
	// readPatience is how long a channel may refuse to be read, again and again,
	// until it counts as broken.
	readPatience = 5 * time.Second
)

func newChannel(conn *net.UnixConn) *channel {
	return &channel{conn: conn, most: maxPayload, wake: make(chan struct{}, 1), closed: make(chan struct{})}
}

// prewrite is send before run, with a larger buffer if m is large: what the
// kernel takes now is there for the other end, whatever becomes of this process.
func (c *channel) prewrite(m message) (err error) {
	growSendBuffer(c.conn, frameHeader+len(m.payload))
	c.sendThen(m, func(e error) { err = e })
	return err
}

// run starts the channel's two goroutines. handle is called by one of them,
// one message after the other; closed is called last, with io.EOF if the other
// end is closed. That one still has to be told from a dead process: see life.
func (c *channel) run(handle func(message), closed func(error)) {
	go c.writeLoop()
	go func() { closed(c.readLoop(handle)) }()
}

func (c *channel) send(m message) { c.sendThen(m, nil) }

// sendThen sends m; sent is called when it was written, or can't be any more,
// maybe at once.
func (c *channel) sendThen(m message, sent func(error)) {
	c.enqueue(&outgoing{frame: m.frame(), fds: m.fds, sent: sent})
}

// sendWithin is sendThen with a limit: sent is called with errNotSent or
// errCutShort if m is not written when d is over.
func (c *channel) sendWithin(d time.Duration, m message, sent func(error)) {
	o := &outgoing{frame: m.frame(), fds: m.fds, sent: sent, until: time.Now().Add(d)}
	// The one before it may be stuck for longer. When the writer has o, it sees
	// to the limit itself.
	timer := time.AfterFunc(d, func() {
		if c.withdraw(o) {
			sent(c.notSent())
		}
	})
	o.sent = func(err error) { timer.Stop(); sent(err) }
	c.enqueue(o)
}

// withdraw takes o out of the queue, if it is still there, and nothing of it is
// written.
func (c *channel) withdraw(o *outgoing) bool {
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

func (c *channel) enqueue(o *outgoing) {
	queued, err := c.write(o)
	if queued {
		select {
		case c.wake <- struct{}{}:
		default:
		}
		return
	}
	if err != nil {
		c.fail(err)
	}
	if o.sent != nil {
		o.sent(err)
	}
}

// write writes o at once, if nothing is before it and the kernel takes it;
// otherwise what is left of it is queued.
func (c *channel) write(o *outgoing) (queued bool, err error) {
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

// wrote: n bytes of it are written. Descriptors go with the first.
func (o *outgoing) wrote(n int) {
	if n > 0 {
		o.frame, o.fds, o.begun = o.frame[n:], nil, true
	}
}

// sayLeft tells a process that is started, and hangs in that, that nobody waits for
// it any more: what forks (see command.fork) can't be killed before it has executed
// its program, and that may be when this process is gone. Its first message must not
// be taken for the death of this process, after which it would serve.
func (c *channel) sayLeft() { c.send(newMessage(msgStop, &stopMessage{Now: true})) }

// saysLeft reports whether the next message is that of sayLeft. It stays to be read.
func (c *channel) saysLeft() bool {
	if len(c.in) == 0 && c.readable() {
		c.fill() // an error comes again
	}
	return len(c.in) > 0 && messageType(c.in[0]) == msgStop
}

// flush waits until what was queued is written, or d is over.
func (c *channel) flush(d time.Duration) {
	done := make(chan struct{})
	c.enqueue(&outgoing{sent: func(error) { close(done) }})
	select {
	case <-done:
	case <-time.After(d):
	}
}

// close ends both goroutines. What was queued and not written is dropped.
func (c *channel) close() {
	c.fail(net.ErrClosed)
	c.conn.Close()
}

// fail ends writing.
func (c *channel) fail(err error) {
	c.mu.Lock()
	queue := c.queue
	c.queue = nil
	if c.err == nil {
		c.err = err
		close(c.closed)
	}
	c.mu.Unlock()
	for _, o := range queue {
		if o.sent != nil {
			o.sent(err)
		}
	}
}

func (c *channel) writeLoop() {
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
		if o.sent != nil {
			o.sent(err)
		}
		if err != nil && !errors.Is(err, errNotSent) {
			c.fail(err)
			return
		}
	}
}

// dequeue gives the next to be written, nil if there is none.
func (c *channel) dequeue() *outgoing {
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

// writeOut waits until all of o is written, or until its time is over and
// nothing is.
func (c *channel) writeOut(o *outgoing) error {
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
				o.sent(errCutShort)
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

func (c *channel) setRefused(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refused = err
}

// notSent gives errNotSent, and the reason.
func (c *channel) notSent() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return fmt.Errorf("%w: %w", errNotSent, cmp.Or(c.refused, errNotRead))
}

func (c *channel) readLoop(handle func(message)) error {
	defer func() {
		for _, b := range c.inFDs {
			fd.CloseAll(b.fds)
		}
	}()
	for {
		m, err := c.next()
		if err != nil {
			return err
		}
		handle(m)
	}
}

// next returns the next message. Only one goroutine may call it.
func (c *channel) next() (message, error) {
	for {
		if m, ok, err := c.parse(); ok || err != nil {
			return m, err
		}
		if err := c.fill(); err != nil {
			if err == io.EOF && len(c.in) > 0 {
				err = io.ErrUnexpectedEOF
			}
			return message{}, err
		}
	}
}

// fill reads more of the channel into c.in and c.inFDs.
func (c *channel) fill() error {
	begun := time.Now()
	for pause := shortestPause; ; pause = min(2*pause, longestPause) {
		err := c.receive()
		if err == nil || !passes(err) {
			return err
		}
		if time.Since(begun) > readPatience {
			return fmt.Errorf("it can't be read for %v: %w", readPatience, err)
		}
		time.Sleep(pause)
	}
}

func (c *channel) parse() (m message, ok bool, err error) {
	if len(c.in) < frameHeader {
		return m, false, nil
	}
	announced := binary.BigEndian.Uint32(c.in[4:])
	if uint64(announced) > uint64(c.most) { // above 2^31 it is negative as an int of 32 bit
		return m, false, fmt.Errorf("%w: a message of %d bytes on the control channel", ErrProtocol, announced)
	}
	size := int(announced)
	if len(c.in) < frameHeader+size {
		return m, false, nil
	}
	nfds := int(c.in[1])
	m.typ = messageType(c.in[0])
	m.payload = append([]byte(nil), c.in[frameHeader:frameHeader+size]...)
	c.in = append(c.in[:0], c.in[frameHeader+size:]...)
	if cap(c.in) > keptBuffer && len(c.in) < keptBuffer {
		c.in = append(make([]byte, 0, keptBuffer), c.in...)
	}
	for i := range c.inFDs {
		c.inFDs[i].end -= frameHeader + size
	}
	for len(c.inFDs) > 0 && c.inFDs[0].end <= 0 {
		m.fds = append(m.fds, c.inFDs[0].fds...)
		c.inFDs = c.inFDs[1:]
	}
	if len(m.fds) > nfds { // not announced: not by this protocol
		fd.CloseAll(m.fds[nfds:])
		m.fds = m.fds[:nfds]
	}
	return m, true, nil
}
