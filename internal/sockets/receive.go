package sockets

import (
	"context"
	"crypto/tls"
	"net"
	"sync"

	"github.com/julofinance/grace/v3/internal/control"
	"github.com/julofinance/grace/v3/internal/fd"
	"github.com/julofinance/grace/v3/internal/tls13"
)

// A Receiver takes moved connections in the new process. Its methods are called by the
// goroutine that reads the channel, which waits for nothing else: whether a TLS
// connection can be taken, which functions of the program may have to say, is found out
// by another.
type Receiver struct {
	Ch   *control.Channel
	Find func(index int) *Listener // nil if this process has none that takes them

	mu    sync.Mutex // guards the following
	Held  map[uint32]*Received
	ended bool // OnEnd was called
	said  bool // why a TLS connection was refused
}

// A Received is a connection that the old process has offered, and not given up yet.
// Nothing is read from it or written to it.
type Received struct {
	Conn   net.Conn
	l      *Listener
	unread []byte
	custom bool
	past   past
	over   *received // nil without TLS
	judged bool      // over is known to be served here
}

// A received is the TLS of one.
type received struct {
	state tls13.State
	told  tls.ConnectionState
}

// coverPatience is how long a process may take to find out which of the TLS connections of
// a message it takes: less than the old process waits.
const coverPatience = tookPatience / 2

// OnConns makes connections of the descriptors, and keeps them until the old
// process has given them up. A descriptor that did not arrive, or can't be used,
// stays the old process's.
func (r *Receiver) OnConns(m control.Message) error {
	batch, err := decodeConns(m.Payload)
	if err != nil {
		fd.CloseAll(m.FDs)
		return err
	}
	if len(m.FDs) > len(batch) {
		fd.CloseAll(m.FDs[len(batch):])
	}
	var took, refused []uint32
	doubtful := map[uint32]*Received{}
	listeners := map[int]*Listener{}
	for i := range batch {
		c := &batch[i]
		if i >= len(m.FDs) {
			refused = append(refused, c.ID)
			c.wipe()
			continue
		}
		l, ok := listeners[c.socket]
		if !ok {
			l = r.Find(c.socket)
			listeners[c.socket] = l
		}
		switch held := r.receive(c, l, m.FDs[i]); {
		case held == nil:
			refused = append(refused, c.ID)
		case held.over != nil:
			doubtful[c.ID] = held
		default:
			took = append(took, c.ID)
		}
		c.wipe()
	}
	if len(doubtful) > 0 {
		clear(m.Payload)
		go r.judge(doubtful, took, refused)
		return nil
	}
	r.answer(took, refused)
	return nil
}

func (r *Receiver) answer(took, refused []uint32) {
	r.Ch.Send(control.Message{Type: MsgTook, Payload: encodeIDs(took, refused)})
}

// receive makes a connection of n for l, and holds it; nil if it can't, and then n is
// closed.
func (r *Receiver) receive(c *Moving, l *Listener, n int) *Received {
	if l == nil || c.tls != (l.Protocol() == ProtocolTLS) || !l.Gate.Reserve() { // until deliver, or drop
		fd.CloseAll([]int{n})
		return nil
	}
	conn, err := ReceiveConn(n, c.custom)
	if err != nil {
		l.Gate.Unreserve()
		return nil
	}
	held := &Received{Conn: conn, l: l, custom: c.custom, past: c.past}
	if c.tls {
		state, err := tls13.Decode(c.Unread)
		if _, tcp := conn.(*net.TCPConn); err != nil || !tcp {
			r.refuse(held, err)
			return nil
		}
		held.over = &received{state: state}
	} else {
		held.unread, held.judged = c.Unread, true
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.Held[c.ID] = held
	return held
}

// judge finds out which of the TLS connections doubtful this process takes, and answers
// for all of a message. The old process may give a connection back to its client, or die,
// meanwhile.
func (r *Receiver) judge(doubtful map[uint32]*Received, took, refused []uint32) {
	ctx, cancel := context.WithTimeout(context.Background(), coverPatience)
	defer cancel()
	for id, c := range doubtful {
		told, err := c.l.covers(ctx, c.Conn, &c.over.state)
		if err == nil {
			err = ctx.Err() // the old process has lost its patience, or is about to
		}
		r.mu.Lock()
		_, ok := r.Held[id]
		if c.over.told, c.judged = told, err == nil; !c.judged {
			delete(r.Held, id)
		}
		ended := r.ended
		r.mu.Unlock()
		switch {
		case !ok:
			r.refuse(c, nil)
		case err != nil:
			r.refuse(c, err)
			refused = append(refused, id)
		case ended:
			r.settle(id)
		default:
			took = append(took, id)
		}
	}
	r.answer(took, refused)
}

// refuse closes this process's copy of a connection.
func (r *Receiver) refuse(c *Received, why error) {
	if c.over != nil {
		c.over.state.Wipe()
	}
	c.Conn.Close()
	c.l.Gate.Unreserve()
	if why == nil {
		return
	}
	r.mu.Lock()
	first := !r.said
	r.said = true
	r.mu.Unlock()
	if first {
		c.l.socks.Log.Warn("grace: a TLS connection that was to be moved here can't be served; the old process finishes it", "err", why)
	}
}

func (r *Receiver) OnVerdict(m control.Message) error {
	yours, mine, err := DecodeIDs(m.Payload)
	if err != nil {
		return err
	}
	for _, id := range yours {
		r.deliver(id)
	}
	for _, id := range mine {
		r.drop(id)
	}
	return nil
}

// OnEnd: the old process is dead, and what it has sent was read. What this
// process took is its own, though no verdict has come, unless the old process had
// taken it back: that may have read a part of a request.
func (r *Receiver) OnEnd() {
	r.mu.Lock()
	r.ended = true
	var ids []uint32
	for id, c := range r.Held {
		if c.judged { // else judge does it
			ids = append(ids, id)
		}
	}
	r.mu.Unlock()
	for _, id := range ids {
		r.settle(id)
	}
}

// settle is OnEnd for one connection.
func (r *Receiver) settle(id uint32) {
	r.mu.Lock()
	c, ok := r.Held[id]
	r.mu.Unlock()
	if !ok {
		return
	}
	if n, err := fd.Of(c.Conn); err != nil || isTakenBack(n) {
		r.drop(id)
	} else {
		r.deliver(id)
	}
}

// release returns a connection that is held no more; nil if it was not, or if judge still
// has it, which sees then that it is gone.
func (r *Receiver) release(id uint32) *Received {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.Held[id]
	delete(r.Held, id)
	if c != nil && !c.judged {
		return nil
	}
	return c
}

// drop closes this process's copy of a connection that stays the old process's.
func (r *Receiver) drop(id uint32) {
	if c := r.release(id); c != nil {
		r.refuse(c, nil)
	}
}

// deliver serves a connection, which is this process's from now on.
func (r *Receiver) deliver(id uint32) {
	c := r.release(id)
	if c == nil {
		return
	}
	t := Tracked(c.Conn, c.l, c.unread, nil, nil)
	moved := TrackOf(t)
	moved.come(c.past)
	if c.custom {
		moved.customize()
	}
	if c.over != nil {
		session, err := tls13.New(t, &c.over.state, c.over.told)
		if err != nil { // not reached: Decode has checked the state
			t.Close()
			c.l.Gate.Unreserve()
			return
		}
		t = newTLSConn(session, t.(*TCPConn))
	}
	c.l.Give(t)
	c.l.Gate.Unreserve()
}

// IsHolding reports whether there is any connection, for tests.
func (r *Receiver) IsHolding() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.Held) > 0
}
