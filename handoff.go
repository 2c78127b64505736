package grace

import (
	"encoding/binary"
	"encoding/json"
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
//	new -> old  accepting  the PID file is switched, new accepts
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
	Version    int    `json:"version"`
	Pid        int    `json:"pid"`
	Generation int    `json:"generation"` // of new
	Dir        string `json:"dir"`        // working directory of the first start
	Path       string `json:"path"`       // binary of the first start
	PIDFile    string `json:"pidfile,omitempty"`
	// Systemd is there if it is to be told of what happens.
	Systemd *serviceManager `json:"systemd,omitempty"`
	// Sockets[i] has the descriptor handover.first+i.
	Sockets []entry `json:"sockets"`
}

// An entry describes one descriptor that is handed over.
type entry struct {
	Kind    kind   `json:"kind"`
	Network string `json:"network,omitempty"`
	Addr    string `json:"addr"`            // what was asked for, or the name of a file or connection
	Bound   string `json:"bound,omitempty"` // what the kernel says
	V6Only  bool   `json:"v6only,omitempty"`
	// Path, Dev and Ino are those of a unix socket's file, so that only the
	// file that we made is ever removed.
	Path string `json:"path,omitempty"`
	Dev  uint64 `json:"dev,omitempty"`
	Ino  uint64 `json:"ino,omitempty"`
	// Master says that a master has passed the socket and keeps it: nobody here
	// removes its path, and its queue is not ours to empty.
	Master bool `json:"master,omitempty"`
	// Name is the one that the master gave it.
	Name string `json:"name,omitempty"`
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
	Sockets []int `json:"sockets"` // indexes into manifest.Sockets
	// PIDLock says that the message carries the locked PID file of new: old
	// keeps the lock with it, should new die.
	PIDLock bool `json:"pidlock,omitempty"`
	// Takes says for which sockets new takes moved connections, and of which
	// protocol. Those that come to it later have a message of their own.
	Takes map[int]string `json:"takes,omitempty"`
}

// stopMessage is a message of type msgStop, in either direction.
type stopMessage struct {
	Now bool `json:"now,omitempty"`
	// Leave is said by a new process that gives up by itself: old is to take
	// over again. Without it, somebody asked new to stop the service.
	Leave bool `json:"leave,omitempty"`
}

type messageType byte

const (
	msgManifest  messageType = 'M' // old -> new: manifest
	msgClaims    messageType = 'R' // new -> old: claims
	msgGo        messageType = 'G' // old -> new
	msgAccepting messageType = 'A' // new -> old
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

func newMessage(t messageType, v any) message {
	if v == nil {
		return message{typ: t}
	}
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // our own types always marshal
	}
	return message{typ: t, payload: b}
}

func (m message) frame() []byte {
	b := make([]byte, frameHeader, frameHeader+len(m.payload))
	b[0] = byte(m.typ)
	b[1] = byte(len(m.fds))
	binary.BigEndian.PutUint32(b[4:], uint32(len(m.payload)))
	return append(b, m.payload...)
}

// A channel is one end of the control channel. Send never blocks: one
// goroutine writes what was queued. One goroutine reads, and calls handle for
// each message and closed once at the end.
type channel struct {
	conn *net.UnixConn

	mu     sync.Mutex
	queue  []outgoing
	rest   []byte // of a frame that prewrite could not write whole
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

type outgoing struct {
	message
	sent func(error) // may be nil
}

func newChannel(conn *net.UnixConn) *channel {
	return &channel{conn: conn, wake: make(chan struct{}, 1), closed: make(chan struct{})}
}

// prewrite writes as much of m as the kernel takes without blocking; run
// writes the rest. To be called before run, with a message without descriptors.
func (c *channel) prewrite(m message) error {
	b := m.frame()
	growSendBuffer(c.conn, len(b))
	n, err := writeNonblock(c.conn, b)
	c.rest = b[n:]
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

// sendThen queues m; sent is called when it was written, or can't be any more.
func (c *channel) sendThen(m message, sent func(error)) {
	c.mu.Lock()
	err := c.err
	if err == nil {
		c.queue = append(c.queue, outgoing{m, sent})
	}
	c.mu.Unlock()
	if err != nil {
		if sent != nil {
			sent(err)
		}
		return
	}
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// flush waits until what was queued is written, or d is over.
func (c *channel) flush(d time.Duration) {
	done := make(chan struct{})
	c.sendThen(message{}, func(error) { close(done) })
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
	if _, err := c.conn.Write(c.rest); err != nil {
		c.fail(err)
		return
	}
	c.rest = nil
	for {
		c.mu.Lock()
		queue := c.queue
		c.queue = nil
		c.mu.Unlock()
		for i, o := range queue {
			var err error
			if o.typ != 0 { // else it is flush's
				err = writeFrame(c.conn, o.frame(), o.fds)
			}
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

func (m message) decode(v any) error {
	if err := json.Unmarshal(m.payload, v); err != nil {
		return fmt.Errorf("%w: message %q on the control channel: %w", ErrProtocol, m.typ, err)
	}
	return nil
}
