package sockets

import (
	"net"

	"github.com/julofinance/grace/v3/internal/control"
	"github.com/julofinance/grace/v3/internal/fd"
)

// A Receiver takes moved connections in the new process. All of it runs in the
// goroutine that reads the channel.
type Receiver struct {
	Ch   *control.Channel
	Find func(index int) *Listener // nil if this process has none that takes them
	Held map[uint32]Received
}

type Received struct {
	Conn   net.Conn
	l      *Listener
	unread []byte
	custom bool
	past   past
}

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
	listeners := map[int]*Listener{}
	for i, c := range batch {
		if i >= len(m.FDs) {
			refused = append(refused, c.ID)
			continue
		}
		l, ok := listeners[c.socket]
		if !ok {
			l = r.Find(c.socket)
			listeners[c.socket] = l
		}
		if l == nil || !l.Gate.Reserve() { // until deliver, or drop
			fd.CloseAll(m.FDs[i : i+1])
			refused = append(refused, c.ID)
			continue
		}
		conn, err := ReceiveConn(m.FDs[i], c.custom)
		if err != nil {
			l.Gate.Unreserve()
			refused = append(refused, c.ID)
			continue
		}
		r.Held[c.ID] = Received{conn, l, c.Unread, c.custom, c.past}
		took = append(took, c.ID)
	}
	r.Ch.Send(control.Message{Type: MsgTook, Payload: encodeIDs(took, refused)})
	return nil
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
	for id, c := range r.Held {
		if n, err := fd.Of(c.Conn); err != nil || isTakenBack(n) {
			r.drop(id)
		} else {
			r.deliver(id)
		}
	}
}

// drop closes this process's copy of a connection that stays the old process's.
func (r *Receiver) drop(id uint32) {
	if c, ok := r.Held[id]; ok {
		delete(r.Held, id)
		c.Conn.Close()
		c.l.Gate.Unreserve()
	}
}

func (r *Receiver) deliver(id uint32) {
	c, ok := r.Held[id]
	if !ok {
		return
	}
	delete(r.Held, id)
	t := Tracked(c.Conn, c.l, c.unread, nil, nil)
	moved := TrackOf(t)
	moved.come(c.past)
	if c.custom {
		moved.customize()
	}
	c.l.Give(t)
	c.l.Gate.Unreserve()
}
