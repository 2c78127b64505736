package sockets

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/julofinance/grace/v3/internal/control"
	"github.com/julofinance/grace/v3/internal/fd"
	"github.com/julofinance/grace/v3/internal/manifest"
	"github.com/julofinance/grace/v3/internal/tls13"
)

// When a connection may move at all is decided where it is read: see mayLeave and
// mustLeave in conn.go.
//
// A connection is moved in three steps, so that at each moment exactly one
// process may read from it, whichever process dies:
//
//	old -> new  conns    descriptors, with ids; the old process keeps its own and
//	                     reads no more
//	new -> old  took     the ids that the new process has received and can use
//	old -> new  verdict  the old process has closed its own: the connections are the
//	                     new process's. Or they are not: the old process has lost
//	                     patience and serves them itself again
//
// What the new process has not taken stays with the old one: the kernel drops the
// descriptors that the new process's table has no room for, and the new process
// may have no such listener any more. If the new process dies before it took one,
// the old one has it still, and nothing was read from it. If the old process dies
// after the new one took one, it is the new one's, unless it bears the mark of
// one that the old process has taken back: see takenBack. No second descriptor is
// needed in either process.
//
// The old process takes back what is not taken in time, and moves nothing more: a
// message that the kernel does not take, or that the new process does not read,
// holds no connection for longer than Patience.

// The messages of a move.
const (
	MsgConns   control.Type = 'C' // old -> new: connections
	MsgTook    control.Type = 'K' // new -> old: their ids
	MsgVerdict control.Type = 'V' // old -> new: ids, and whether they are the new process's
)

const (
	BatchConns   = 128      // connections in a message, at most maxFDs
	maxUnread    = 32 << 10 // bytes already read that go with a connection
	batchBytes   = 16 << 10 // of a message with several connections
	windowSize   = 4        // messages not answered yet: less than a socket buffer
	tookPatience = 2 * time.Second
)

// ProtocolHTTP1 is the protocol that a plaintext net/http server takes.
const ProtocolHTTP1 = "http/1.1"

// Move moves c: see grace.Move.
func Move(c net.Conn, unread []byte) error {
	var t *Track
	switch c := c.(type) {
	case *TCPConn:
		t = &c.Track
	case *UnixConn:
		t = &c.Track
	default: // a wrapper, such as TLS, has state that the descriptor has not
		return fmt.Errorf("grace: %w: a %T is none that Listen's listener has accepted", ErrNotMoved, c)
	}
	t.mu.Lock()
	m, ending := t.Mover, t.ending
	ok := m != nil && !t.life.isOver() && t.phase == PhaseOther && t.Detour.tls == nil && len(unread)+len(t.unread) <= maxUnread
	var rest []byte
	if ok {
		rest = append(append(rest, unread...), t.unread...)
		t.life = lifeMoving
	}
	t.mu.Unlock()
	switch {
	case ending:
		return fmt.Errorf("grace: %w: %w", ErrNotMoved, ErrStopped)
	case !ok:
		return fmt.Errorf("grace: %w", ErrNotMoved)
	}
	if !m.move(t, rest) {
		t.mu.Lock()
		t.life = lifeOpen // PhaseOther is never lifeLeaving
		t.mu.Unlock()
		return fmt.Errorf("grace: %w", ErrNotMoved)
	}
	return nil
}

// A Mover moves connections from the old process to its successor.
type Mover struct {
	ch      *control.Channel
	sockets map[*Listener]int // their indexes in the manifest
	// Patience is how long the new process may take to report that it has taken a
	// connection, and to read that it is not to take it.
	Patience time.Duration
	// Stuck is called, once, with the reason why connections can't be moved any
	// more. May be nil.
	Stuck func(error)
	// Grace is how long a connection may stop in the middle of a request's header.
	Grace time.Duration

	mu      sync.Mutex // guards the following
	takes   []string   // by index
	over    bool       // nothing is moved any more
	held    bool       // nothing is sent yet: see Hold
	settled func()     // see Send
	back    int        // how many are being taken back
	nextID  uint32
	queue   []*Moving
	sent    map[uint32]*Moving
	writing bool // a message is with the channel, and not written yet
	window  int  // messages not answered yet
	moved   int
	noTLS   bool // no TLS connection is moved: that was logged
}

type Moving struct {
	ID     uint32
	t      *Track
	socket int
	custom bool // its options must be kept
	past   past
	tls    bool // Unread is the TLS of the connection: see tlsconn.go
	Unread []byte
	fd     int
	at     time.Time // when it was written; zero before
	shared bool      // the new process may have a copy of it
}

// NewMover returns one for the process at the other end of ch, which was given
// handed.
func NewMover(ch *control.Channel, handed []*Socket) *Mover {
	m := &Mover{
		ch: ch, Patience: tookPatience,
		sockets: make(map[*Listener]int, len(handed)), takes: make([]string, len(handed)), sent: map[uint32]*Moving{},
	}
	for i, sock := range handed {
		if sock.Listener != nil {
			m.sockets[sock.Listener] = i
		}
	}
	return m
}

// Learn adds what the new process reports to take.
func (m *Mover) Learn(c manifest.Claims) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, socket := range c.Sockets {
		if socket < len(m.takes) && c.Takes[i] != "" {
			m.takes[socket] = c.Takes[i]
		}
	}
}

// Accepts reports whether the new process takes connections of this protocol for
// l.
func (m *Mover) Accepts(l *Listener, proto string) bool {
	if m == nil || proto == "" {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	i, ok := m.sockets[l]
	return ok && !m.over && m.takes[i] == proto && !(m.noTLS && proto == ProtocolTLS)
}

// move takes t, from which no Read is under way; false if it can't.
func (m *Mover) move(t *Track, unread []byte) bool {
	n, err := fd.Of(t.Inner)
	if err != nil {
		return false
	}
	over := t.overTLS()
	if over != nil {
		if unread, err = over.leave(); err != nil {
			m.sayNoTLS(t, err)
			return false
		}
	}
	t.mu.Lock()
	custom, p := t.origin.has(originCustom), t.past()
	t.mu.Unlock()
	unmark(n)
	m.mu.Lock()
	i, ok := m.sockets[t.Listener]
	if m.over || !ok {
		m.mu.Unlock()
		return false
	}
	m.nextID++
	m.queue = append(m.queue, &Moving{ID: m.nextID, t: t, socket: i, custom: custom, past: p, tls: over != nil, Unread: unread, fd: n})
	m.flush()
	held := m.held
	m.mu.Unlock()
	if held { // this process has finished it
		t.Listener.Live.remove(t, false)
	}
	return true
}

// wipe forgets a TLS that was encoded: the message has it, and the track.
func (c *Moving) wipe() {
	if c.tls {
		clear(c.Unread)
		c.Unread = nil
	}
}

// BarTLS lets no TLS connection move any more.
func (m *Mover) BarTLS() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.noTLS = true
}

// sayNoTLS logs why the TLS of a connection can't be moved, if it is for a reason that
// may be that of every other connection, and none was logged before.
func (m *Mover) sayNoTLS(t *Track, err error) {
	if !errors.Is(err, tls13.ErrUnknown) {
		return // half a message has come, say: the connection is served on
	}
	m.mu.Lock()
	first := !m.noTLS
	m.noTLS = true
	m.mu.Unlock()
	if first {
		t.Listener.socks.Log.Warn("grace: a TLS connection can't be moved; TLS connections are finished here", "err", err)
	}
}

// flush sends the next of the queue, if the window allows. While one message is
// being written, connections gather for the next one.
func (m *Mover) flush() {
	if m.over || m.held || m.writing || m.window >= windowSize || len(m.queue) == 0 {
		return
	}
	var batch []*Moving
	for size := 0; len(m.queue) > 0 && len(batch) < BatchConns; {
		c := m.queue[0]
		if size += ConnHeader + len(c.Unread); size > batchBytes && len(batch) > 0 {
			break
		}
		m.queue[0] = nil
		m.queue = m.queue[1:]
		batch = append(batch, c)
		m.sent[c.ID] = c
	}
	m.writing = true
	m.window++
	msg := EncodeConns(batch)
	for _, c := range batch {
		c.wipe()
	}
	// Not here: a failed channel answers at once, and m.mu is held.
	go m.ch.SendWithin(m.Patience, msg, func(err error) { m.onWritten(batch, err) })
}

// onWritten: a message was written, or could not be. In that case its connections
// stay in this process, and so do those that wait behind them.
func (m *Mover) onWritten(batch []*Moving, err error) {
	var back []*Moving
	m.mu.Lock()
	m.writing = false
	if err == nil || errors.Is(err, control.ErrCutShort) { // the new process has, or will have, the descriptors
		now := time.Now()
		for _, c := range batch {
			c.at = now
		}
	}
	first := err != nil && !m.over
	switch {
	case first:
		back = append(m.withdraw(batch), m.end()...)
	case err != nil || m.over:
		back = m.withdraw(batch)
	default:
		time.AfterFunc(m.Patience, m.impatient)
	}
	m.flush()
	m.settle()
	m.mu.Unlock()
	m.giveUp(back)
	if first {
		m.isStuck(err)
	}
}

// end ends moving, and returns what is not on its way yet. m.mu is held.
func (m *Mover) end() (back []*Moving) {
	m.over = true
	back, m.queue = m.queue, nil
	m.back += len(back)
	return back
}

func (m *Mover) isStuck(err error) {
	if m.Stuck != nil {
		m.Stuck(err)
	}
}

// withdraw forgets those of batch that are still on their way, and returns them.
func (m *Mover) withdraw(batch []*Moving) (back []*Moving) {
	for _, c := range batch {
		if m.sent[c.ID] == c {
			delete(m.sent, c.ID)
			back = append(back, c)
			m.back++
		}
	}
	return back
}

func (m *Mover) takeBack(back []*Moving) {
	for _, c := range back {
		c.wipe()
		c.t.Listener.TakeBack(c.t, c.Unread, m, c.shared)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.back -= len(back)
	m.settle()
}

// giveUp takes back what the new process has not taken. The new process is told
// of those that it may have got before this process reads from them again: should
// this process die then, the new one must not take over a connection from which
// half a request was read. The message also makes the new process close its copy.
// But if the channel is full, the new process reads nothing, and the old one
// can't wait for it: then the mark tells it.
func (m *Mover) giveUp(all []*Moving) {
	var back, kept []*Moving
	var ids []uint32
	for _, c := range all {
		if c.shared = !c.at.IsZero(); c.shared {
			markTakenBack(c.fd)
			ids = append(ids, c.ID)
			back = append(back, c)
		} else {
			kept = append(kept, c)
		}
	}
	m.takeBack(kept)
	if len(back) == 0 {
		return
	}
	var once sync.Once
	serve := func() { once.Do(func() { m.takeBack(back) }) }
	m.ch.SendThen(control.Message{Type: MsgVerdict, Payload: encodeIDs(nil, ids)}, func(error) { serve() })
	time.AfterFunc(m.Patience, serve)
}

// OnTook: the new process has received ids, and could not make use of refused.
// One that has died since took nothing with it.
func (m *Mover) OnTook(ids, refused []uint32) {
	if m.ch.HungUp() {
		return // Stop is called next
	}
	m.mu.Lock()
	var gone, back []*Moving
	var yours, mine []uint32
	for _, id := range ids {
		// The answer may come before onWritten, which another goroutine calls.
		// If moving is over by then, onWritten takes the connection back.
		if c := m.sent[id]; c != nil && !(m.over && c.at.IsZero()) {
			delete(m.sent, id)
			gone = append(gone, c)
			yours = append(yours, id)
		} else {
			mine = append(mine, id)
		}
	}
	for _, id := range refused {
		if c := m.sent[id]; c != nil {
			delete(m.sent, id)
			back = append(back, c)
			m.back++
		}
	}
	m.moved += len(gone)
	m.window--
	m.flush()
	m.settle()
	m.mu.Unlock()
	for _, c := range gone {
		c.t.Inner.Close() // the socket lives on in the new process
		c.t.forgetTLS()
	}
	m.ch.Send(control.Message{Type: MsgVerdict, Payload: encodeIDs(yours, mine)})
	for _, c := range gone {
		c.t.Listener.Live.remove(c.t, false)
	}
	m.takeBack(back)
}

// impatient takes back what was sent long ago and the new process has not taken:
// it does not read the channel.
func (m *Mover) impatient() {
	m.mu.Lock()
	var back []*Moving
	for id, c := range m.sent {
		if !c.at.IsZero() && time.Since(c.at) >= m.Patience {
			delete(m.sent, id)
			back = append(back, c)
			m.back++
		}
	}
	first := len(back) > 0 && !m.over
	if len(back) > 0 {
		back = append(back, m.end()...)
	}
	m.settle()
	m.mu.Unlock()
	m.giveUp(back)
	if first {
		m.isStuck(fmt.Errorf("it has not taken them within %v", m.Patience))
	}
}

// Stop ends moving: the new process is dead, can't be heard, or gives up. A
// message that is being written names descriptors: its connections come back when
// the channel has let go of it.
func (m *Mover) Stop() {
	m.mu.Lock()
	back := m.end()
	for id, c := range m.sent {
		if !c.at.IsZero() {
			delete(m.sent, id)
			back = append(back, c)
			m.back++
		}
	}
	m.settle()
	m.mu.Unlock()
	m.giveUp(back)
}

func (m *Mover) Count() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.moved
}

// Pending counts the connections that are on their way, and of them those whose
// message is written.
func (m *Mover) Pending() (all, written int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range m.sent {
		if !c.at.IsZero() {
			written++
		}
	}
	return len(m.sent) + len(m.queue), written
}
