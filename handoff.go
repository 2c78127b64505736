package grace

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// What crosses between the two processes of a hand-over.
//
// Old writes the manifest into the control channel before it forks, so that a
// process that exists has everything, whatever becomes of old from then on.
// The rest is a conversation of typed messages, in this order:
//
//	new -> old  claims     the sockets that it took; the PID file's lock
//	new -> old  "ready 1"  on the readiness pipe
//	old -> new  go         old has decided: it won't kill new for being late any more
//	new -> old  accepting  the PID file is switched, new accepts; the claims, if they have changed
//	old                    stops accepting; probation begins
//
// Without go, old could kill a new process that is late at the very moment in
// which it begins to accept, together with the connections that it has just
// accepted. A new process that sees the channel close instead of go carries on:
// old is dead.

// protocolVersion is the version of the manifest and of the messages. It goes
// up when a process of the other version could not carry out the hand-over.
const protocolVersion = 1

// readyLine is what new writes down the readiness pipe.
var readyLine = fmt.Sprintf("ready %d\n", protocolVersion)

// A manifest is all that new gets from old, besides the descriptors.
type manifest struct {
	Version    int
	Pid        int
	Generation int    // of new
	Dir        string // working directory of the first start
	Path       string // binary of the first start
	PIDFile    string
	// Systemd is there if it is to be told of what happens.
	Systemd *serviceManager
	// Sockets[i] has the descriptor handover.first+i.
	Sockets []entry
}

// An entry describes one descriptor that is handed over.
type entry struct {
	Kind    kind
	Network string
	Addr    string // what was asked for, or the name of a file or connection
	Bound   string // what the kernel says
	V6Only  bool
	// Path, Dev and Ino are those of a unix socket's file, so that only the
	// file that we made is ever removed.
	Path string
	Dev  uint64
	Ino  uint64
	// Master says that a master has passed the socket and keeps it: nobody here
	// removes its path, and its queue is not ours to empty.
	Master bool
	// Name is the one that the master gave it.
	Name string
}

type kind string

const (
	kindListener kind = "listener"
	kindPacket   kind = "packet"
	kindFile     kind = "file"
	kindConn     kind = "conn"
)

// claims is what new says before it is ready.
type claims struct {
	Sockets []int // indexes into manifest.Sockets
	// Takes says for each of Sockets of which protocol new takes moved
	// connections. What it comes to take later has a message of its own.
	Takes []string
	// PIDLock says that the message carries the locked PID file of new: old
	// keeps the lock with it, should new die.
	PIDLock bool
}

func (c *claims) add(socket int, takes string) {
	c.Sockets, c.Takes = append(c.Sockets, socket), append(c.Takes, takes)
}

// stopMessage is a message of type msgStop, in either direction.
type stopMessage struct {
	Now bool
	// Leave is said by a new process that gives up by itself: old is to take
	// over again. Without it, somebody asked new to stop the service.
	Leave bool
}

type messageType byte

const (
	msgManifest  messageType = 'M' // old -> new: manifest
	msgClaims    messageType = 'R' // new -> old: claims
	msgGo        messageType = 'G' // old -> new
	msgAccepting messageType = 'A' // new -> old: claims, if they have changed
	msgStop      messageType = 'S' // either: stopMessage
	msgUpgrade   messageType = 'U' // old -> new: upgrade once old is gone
	msgFailed    messageType = 'F' // new -> old: why new gives up, as text
	msgMain      messageType = 'P' // old -> new: systemd takes new for the main process now
	msgTakes     messageType = 'T' // new -> old: claims.Takes, more of them
	msgConns     messageType = 'C' // old -> new: connections, see move.go
	msgTook      messageType = 'K' // new -> old: their ids
	msgVerdict   messageType = 'V' // old -> new: ids, and whether they are new's
)

// A message is one frame of the control channel: type, number of descriptors,
// two bytes of zero, length of the payload, payload. Descriptors travel with
// the frame's first byte; the receiver owns them.
type message struct {
	typ     messageType
	payload []byte
	fds     []int
}

const (
	frameHeader = 8
	maxPayload  = 64 << 20
	maxFDs      = 253 // SCM_MAX_FD of Linux, see unix(7)
)

func newMessage(t messageType, v body) message {
	if v == nil {
		return message{typ: t}
	}
	var r records
	v.encode(&r)
	return message{typ: t, payload: r.b}
}

func (m message) frame() []byte {
	b := make([]byte, frameHeader, frameHeader+len(m.payload))
	b[0] = byte(m.typ)
	b[1] = byte(len(m.fds))
	binary.BigEndian.PutUint32(b[4:], uint32(len(m.payload)))
	return append(b, m.payload...)
}

// A channel is one end of the control channel. Send never blocks: what the
// kernel does not take at once is queued, and written by a goroutine. Another
// one reads, and calls handle for each message and closed once at the end.
type channel struct {
	conn *net.UnixConn

	mu     sync.Mutex
	queue  []outgoing
	busy   bool // the goroutine that writes has taken the queue, and is not through with it
	err    error
	wake   chan struct{} // buffered 1: something was queued, or closed
	in     []byte        // read, not yet parsed
	inFDs  []batch       // received, not yet given to a message
	closed chan struct{}
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
	sent  func(error) // may be nil
}

func newChannel(conn *net.UnixConn) *channel {
	return &channel{conn: conn, wake: make(chan struct{}, 1), closed: make(chan struct{})}
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
// end is gone.
func (c *channel) run(handle func(message), closed func(error)) {
	go c.writeLoop()
	go func() {
		err := c.readLoop(handle)
		c.close()
		closed(err)
	}()
}

func (c *channel) send(m message) { c.sendThen(m, nil) }

// sendThen sends m; sent is called when it was written, or can't be any more,
// maybe at once.
func (c *channel) sendThen(m message, sent func(error)) {
	c.enqueue(outgoing{m.frame(), m.fds, sent})
}

func (c *channel) enqueue(o outgoing) {
	queued, err := c.write(o)
	switch {
	case queued:
		select {
		case c.wake <- struct{}{}:
		default:
		}
		return
	case err != nil && !errors.Is(err, errTooManyInFlight):
		c.fail(err)
	}
	if o.sent != nil {
		o.sent(err)
	}
}

// write writes o at once, if nothing is before it and the kernel takes it;
// otherwise what is left of it is queued.
func (c *channel) write(o outgoing) (queued bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return false, c.err
	}
	if len(c.queue) == 0 && !c.busy {
		n, err := writeNonblock(c.conn, o.frame, o.fds)
		if err != nil || n == len(o.frame) {
			return false, err
		}
		if n > 0 { // descriptors go with the first byte
			o.frame, o.fds = o.frame[n:], nil
		}
	}
	c.queue = append(c.queue, o)
	return true, nil
}

// flush waits until what was queued is written, or d is over.
func (c *channel) flush(d time.Duration) {
	done := make(chan struct{})
	c.enqueue(outgoing{sent: func(error) { close(done) }})
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
		c.mu.Lock()
		queue := c.queue
		c.queue, c.busy = nil, len(c.queue) > 0
		c.mu.Unlock()
		for i, o := range queue {
			err := writeFrame(c.conn, o.frame, o.fds)
			if o.sent != nil {
				o.sent(err)
			}
			if err != nil && !errors.Is(err, errTooManyInFlight) {
				c.mu.Lock()
				c.queue = append(queue[i+1:], c.queue...)
				c.mu.Unlock()
				c.fail(err)
				return
			}
		}
		if len(queue) > 0 {
			continue
		}
		select {
		case <-c.wake:
		case <-c.closed:
			return
		}
	}
}

func (c *channel) readLoop(handle func(message)) error {
	defer func() {
		for _, b := range c.inFDs {
			closeAll(b.fds)
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

func (c *channel) parse() (m message, ok bool, err error) {
	if len(c.in) < frameHeader {
		return m, false, nil
	}
	size := int(binary.BigEndian.Uint32(c.in[4:]))
	if size > maxPayload {
		return m, false, fmt.Errorf("%w: a message of %d bytes on the control channel", ErrProtocol, size)
	}
	if len(c.in) < frameHeader+size {
		return m, false, nil
	}
	nfds := int(c.in[1])
	m.typ = messageType(c.in[0])
	m.payload = append([]byte(nil), c.in[frameHeader:frameHeader+size]...)
	c.in = append(c.in[:0], c.in[frameHeader+size:]...)
	for i := range c.inFDs {
		c.inFDs[i].end -= frameHeader + size
	}
	for len(c.inFDs) > 0 && c.inFDs[0].end <= 0 {
		m.fds = append(m.fds, c.inFDs[0].fds...)
		c.inFDs = c.inFDs[1:]
	}
	if len(m.fds) > nfds { // not announced: not by this protocol
		closeAll(m.fds[nfds:])
		m.fds = m.fds[:nfds]
	}
	return m, true, nil
}

func (m message) decode(v body) error {
	if err := v.decode(m.payload); err != nil {
		return fmt.Errorf("%w: message %q on the control channel: %w", ErrProtocol, m.typ, err)
	}
	return nil
}
