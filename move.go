package grace

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net"
	"sync"
	"time"

	"github.com/julofinance/grace/v3/internal/control"
	"github.com/julofinance/grace/v3/internal/fd"
	"github.com/julofinance/grace/v3/internal/manifest"
)

// A connection is moved in three steps, so that at each moment exactly one
// process may read from it, whoever dies:
//
//	old -> new  conns    descriptors, with ids; old keeps its own and reads no more
//	new -> old  took     the ids that new has received and could make use of
//	old -> new  verdict  old has closed its own: they are new's. Or: they are not,
//	                     old has lost patience and serves them itself again
//
// What new has not taken stays with old: the kernel drops the descriptors that
// new's table has no room for, and new may have no such listener any more. If
// new dies before it took one, old has it still, and nothing was read from it.
// If old dies after new took one, it is new's, unless it bears the mark of one that
// old has taken back: see takenBack. No second descriptor is needed in either process.
//
// Old takes back what is not taken in time, and moves nothing more: a message that
// the kernel does not take, or that new does not read, holds no connection for
// longer than patience.

const (
	batchConns   = 128      // connections in a message, at most maxFDs
	maxUnread    = 32 << 10 // bytes already read that go with a connection
	batchBytes   = 16 << 10 // of a message with several connections
	windowSize   = 4        // messages not answered yet: less than a socket buffer
	tookPatience = 2 * time.Second
)

// protocolHTTP1 is what a plaintext net/http server takes.
const protocolHTTP1 = "http/1.1"

// ErrMove is returned by Read on a connection of a [Server] with a Protocol
// when this process wants to be rid of it: the handler calls [Move] with what
// it has read and not used yet, and returns. If it is not at a point where it
// could, it reads on: nothing is lost, and Read says so again after more data. All
// methods of a unix connection that read do the same.
var ErrMove = errors.New("the connection is to be moved to the new process: call grace.Move")

// ErrNotMoved is returned by [Move] when the connection stays here.
var ErrNotMoved = errors.New("the connection can't be moved and stays in this process")

// Move hands the connection c, one accepted from a listener that a [Server]
// with a Protocol serves, over to the new process, together with the bytes that
// were read from it and not used: the new process accepts it from its own
// listener, and reads those first. c is not the caller's any more then, and
// must not be used or closed. At most 32 KiB of unread can go along.
//
// ErrNotMoved means that c stays, as it was, and should be served on: unread is
// too long, say, or the upgrade was rolled back. If the error is ErrStopped too,
// this process ends and nobody takes c: the handler may say goodbye and close
// it, or serve on until [DrainTimeout] cuts it off. Nobody may be reading from
// c meanwhile.
func Move(c net.Conn, unread []byte) error {
	var t *track
	switch c := c.(type) {
	case *tcpConn:
		t = &c.track
	case *unixConn:
		t = &c.track
	default: // a wrapper, such as TLS, knows what its descriptor does not
		return fmt.Errorf("grace: %w: a %T is none that Listen's listener has accepted", ErrNotMoved, c)
	}
	t.mu.Lock()
	m, ending := t.mover, t.ending
	ok := m != nil && !t.closed && t.phase == phaseOther && len(unread)+len(t.unread) <= maxUnread
	var rest []byte
	if ok {
		rest = append(append(rest, unread...), t.unread...)
		t.closed, t.away = true, true
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
		t.closed, t.away = false, false
		t.mu.Unlock()
		return fmt.Errorf("grace: %w", ErrNotMoved)
	}
	return nil
}

// A mover moves connections from the old process to its successor.
type mover struct {
	ch      *control.Channel
	sockets map[*listener]int // their indexes in the manifest
	// patience is how long new may take to say that it has taken a connection,
	// and to read that it is not to.
	patience time.Duration
	// stuck is told, once, why connections can't be moved any more. May be nil.
	stuck func(error)
	// grace is how long a connection may stop in the middle of a request's header.
	grace time.Duration

	mu      sync.Mutex
	takes   []string // by index
	over    bool     // nothing is moved any more
	nextID  uint32
	queue   []*moving
	sent    map[uint32]*moving
	writing bool // a message is with the channel, and not written yet
	window  int  // messages not answered yet
	moved   int
}

type moving struct {
	id     uint32
	t      *track
	socket int
	custom bool // its options must be kept
	past   past
	unread []byte
	fd     int
	at     time.Time // when it was written; zero before
	lent   bool      // new may have a copy of it
}

// newMover gives one for the process at the other end of ch, to which handed go.
func newMover(ch *control.Channel, handed []*socket) *mover {
	m := &mover{
		ch: ch, patience: tookPatience,
		sockets: make(map[*listener]int, len(handed)), takes: make([]string, len(handed)), sent: map[uint32]*moving{},
	}
	for i, sock := range handed {
		if sock.listener != nil {
			m.sockets[sock.listener] = i
		}
	}
	return m
}

// learn adds what new says that it takes.
func (m *mover) learn(c manifest.Claims) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, socket := range c.Sockets {
		if socket < len(m.takes) && c.Takes[i] != "" {
			m.takes[socket] = c.Takes[i]
		}
	}
}

// accepts says whether new takes connections of this protocol for l.
func (m *mover) accepts(l *listener, proto string) bool {
	if m == nil || proto == "" {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	i, ok := m.sockets[l]
	return ok && !m.over && m.takes[i] == proto
}

// move takes t, from which nobody reads; false if it can't.
func (m *mover) move(t *track, unread []byte) bool {
	n, err := fd.Of(t.inner)
	if err != nil {
		return false
	}
	t.mu.Lock()
	custom, p := t.custom, t.past()
	t.mu.Unlock()
	unmark(n)
	m.mu.Lock()
	defer m.mu.Unlock()
	i, ok := m.sockets[t.l]
	if m.over || !ok {
		return false
	}
	m.nextID++
	m.queue = append(m.queue, &moving{id: m.nextID, t: t, socket: i, custom: custom, past: p, unread: unread, fd: n})
	m.flush()
	return true
}

// flush sends the next of the queue, if the window allows. While one message is
// written the next one gathers.
func (m *mover) flush() {
	if m.over || m.writing || m.window >= windowSize || len(m.queue) == 0 {
		return
	}
	var batch []*moving
	for size := 0; len(m.queue) > 0 && len(batch) < batchConns; {
		c := m.queue[0]
		if size += connHeader + len(c.unread); size > batchBytes && len(batch) > 0 {
			break
		}
		m.queue[0] = nil
		m.queue = m.queue[1:]
		batch = append(batch, c)
		m.sent[c.id] = c
	}
	m.writing = true
	m.window++
	// Not here: a failed channel answers at once, and m.mu is held.
	go m.ch.SendWithin(m.patience, encodeConns(batch), func(err error) { m.onWritten(batch, err) })
}

// onWritten: a message was written, or could not be: then its connections stay,
// and those that wait behind them.
func (m *mover) onWritten(batch []*moving, err error) {
	var back []*moving
	m.mu.Lock()
	m.writing = false
	if err == nil || errors.Is(err, control.ErrCutShort) { // new has, or will have, the descriptors
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
		time.AfterFunc(m.patience, m.impatient)
	}
	m.flush()
	m.mu.Unlock()
	m.giveUp(back)
	if first {
		m.isStuck(err)
	}
}

// end ends moving, and returns what is not on its way yet. m.mu is held.
func (m *mover) end() (back []*moving) {
	m.over = true
	back, m.queue = m.queue, nil
	return back
}

func (m *mover) isStuck(err error) {
	if m.stuck != nil {
		m.stuck(err)
	}
}

// withdraw forgets those of batch that are still on their way, and returns them.
func (m *mover) withdraw(batch []*moving) (back []*moving) {
	for _, c := range batch {
		if m.sent[c.id] == c {
			delete(m.sent, c.id)
			back = append(back, c)
		}
	}
	return back
}

func (m *mover) takeBack(back []*moving) {
	for _, c := range back {
		c.t.l.takeBack(c.t, c.unread, m, c.lent)
	}
}

// giveUp takes back what new has not taken. Of what it may have got it is told
// before this process reads on: should this one die then, new must not take for
// its own what half a request was read from. The message lets go of new's copy,
// too; but if the channel is full new reads nothing, and old can't wait for it:
// then the mark says it.
func (m *mover) giveUp(all []*moving) {
	var back, kept []*moving
	var ids []uint32
	for _, c := range all {
		if c.lent = !c.at.IsZero(); c.lent {
			markTakenBack(c.fd)
			ids = append(ids, c.id)
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
	m.ch.SendThen(control.Message{Type: msgVerdict, Payload: encodeIDs(nil, ids)}, func(error) { serve() })
	time.AfterFunc(m.patience, serve)
}

// onTook: new has received these, and could not make use of those. A new process
// that has died since took nothing with it.
func (m *mover) onTook(ids, refused []uint32) {
	if m.ch.HungUp() {
		return // stop follows
	}
	m.mu.Lock()
	var gone, back []*moving
	var yours, mine []uint32
	for _, id := range ids {
		// Its answer may be faster than the goroutine that has written the message.
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
		}
	}
	m.moved += len(gone)
	m.window--
	m.flush()
	m.mu.Unlock()
	for _, c := range gone {
		c.t.inner.Close() // the socket lives on in new
	}
	m.ch.Send(control.Message{Type: msgVerdict, Payload: encodeIDs(yours, mine)})
	for _, c := range gone {
		c.t.l.live.remove(c.t, false)
	}
	m.takeBack(back)
}

// impatient takes back what was sent long ago and new has not taken: it does
// not read the channel.
func (m *mover) impatient() {
	m.mu.Lock()
	var back []*moving
	for id, c := range m.sent {
		if !c.at.IsZero() && time.Since(c.at) >= m.patience {
			delete(m.sent, id)
			back = append(back, c)
		}
	}
	first := len(back) > 0 && !m.over
	if len(back) > 0 {
		back = append(back, m.end()...)
	}
	m.mu.Unlock()
	m.giveUp(back)
	if first {
		m.isStuck(fmt.Errorf("it has not taken them within %v", m.patience))
	}
}

// stop ends moving: new is dead, can't be heard, or gives up. A message that is being written
// names descriptors: what it holds comes back when the channel has let go of it.
func (m *mover) stop() {
	m.mu.Lock()
	back := m.end()
	for id, c := range m.sent {
		if !c.at.IsZero() {
			delete(m.sent, id)
			back = append(back, c)
		}
	}
	m.mu.Unlock()
	m.giveUp(back)
}

func (m *mover) count() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.moved
}

// A message of connections is a list of: id, index of the socket, length of
// the unread bytes, milliseconds until its read deadline (0 if there is none),
// each as 4 bytes, big-endian; the bytes. Descriptors are in the same order. The
// index has customBit if the options of the connection may differ from those of
// a new one, freshBit if no request has reached a server of net/http, postBit if
// the last one was a POST.
const (
	customBit = 1 << 31
	freshBit  = 1 << 30
	postBit   = 1 << 29

	connHeader = 16
)

func encodeConns(batch []*moving) control.Message {
	m := control.Message{Type: msgConns}
	for _, c := range batch {
		m.Payload = binary.BigEndian.AppendUint32(m.Payload, c.id)
		socket := uint32(c.socket)
		if c.custom {
			socket |= customBit
		}
		if c.past.origin == originFresh {
			socket |= freshBit
		}
		if c.past.post {
			socket |= postBit
		}
		left := uint32(0)
		if ms := c.past.left.Milliseconds(); ms <= math.MaxUint32 {
			left = uint32(ms)
		}
		m.Payload = binary.BigEndian.AppendUint32(m.Payload, socket)
		m.Payload = binary.BigEndian.AppendUint32(m.Payload, uint32(len(c.unread)))
		m.Payload = binary.BigEndian.AppendUint32(m.Payload, left)
		m.Payload = append(m.Payload, c.unread...)
		m.FDs = append(m.FDs, c.fd)
	}
	return m
}

func decodeConns(b []byte) (batch []moving, err error) {
	for len(b) > 0 {
		if len(b) < connHeader {
			return nil, errBadMessage
		}
		socket := binary.BigEndian.Uint32(b[4:])
		c := moving{
			id: binary.BigEndian.Uint32(b), socket: int(socket &^ (customBit | freshBit | postBit)), custom: socket&customBit != 0,
			past: past{origin: originIdle, post: socket&postBit != 0, left: time.Duration(binary.BigEndian.Uint32(b[12:])) * time.Millisecond},
		}
		if socket&freshBit != 0 {
			c.past.origin = originFresh
		}
		n := binary.BigEndian.Uint32(b[8:])
		b = b[connHeader:]
		if uint64(n) > uint64(len(b)) { // above 2^31 it is negative as an int of 32 bit
			return nil, errBadMessage
		}
		c.unread = append([]byte(nil), b[:int(n)]...)
		b = b[int(n):]
		batch = append(batch, c)
	}
	return batch, nil
}

var errBadMessage = fmt.Errorf("%w: a message on the control channel is cut short", ErrProtocol)

// Two lists of ids: the length of the first, then all of both, 4 bytes each.
func encodeIDs(a, b []uint32) []byte {
	p := binary.BigEndian.AppendUint32(nil, uint32(len(a)))
	for _, ids := range [2][]uint32{a, b} {
		for _, id := range ids {
			p = binary.BigEndian.AppendUint32(p, id)
		}
	}
	return p
}

func decodeIDs(p []byte) (a, b []uint32, err error) {
	if len(p) < 4 || len(p)%4 != 0 || uint64(binary.BigEndian.Uint32(p)) > uint64(len(p)/4-1) {
		return nil, nil, errBadMessage
	}
	n := int(binary.BigEndian.Uint32(p))
	var ids []uint32
	for p = p[4:]; len(p) > 0; p = p[4:] {
		ids = append(ids, binary.BigEndian.Uint32(p))
	}
	return ids[:n], ids[n:], nil
}

// takes says, from now on also to old, that connections of this protocol may be
// moved to l.
func (u *Upgrader) takes(l *listener, proto string) {
	if !u.opt.move || !l.take(proto) || u.parent == nil || l.sock.index < 0 || !u.parent.claims.Load() {
		return // what is known before the claims goes with them: one message for all
	}
	var c manifest.Claims
	c.Add(l.sock.index, proto)
	u.parent.ch.Send(control.NewMessage(msgTakes, &c))
}
