package grace

import (
	"net"

	"github.com/julofinance/grace/v3/internal/control"
	"github.com/julofinance/grace/v3/internal/fd"
)

// A receiver takes moved connections in the new process. All of it runs in the
// goroutine that reads the channel.
type receiver struct {
	ch   *control.Channel
	find func(index int) *listener // nil if this process has none that takes them
	held map[uint32]received
}

type received struct {
	conn   net.Conn
	l      *listener
	unread []byte
	custom bool
	past   past
}

// onConns makes connections of the descriptors, and keeps them until old has
// given them up. A descriptor that did not arrive, or can't be used, stays old's.
func (r *receiver) onConns(m control.Message) error {
	batch, err := decodeConns(m.Payload)
	if err != nil {
		fd.CloseAll(m.FDs)
		return err
	}
	if len(m.FDs) > len(batch) {
		fd.CloseAll(m.FDs[len(batch):])
	}
	var took, refused []uint32
	listeners := map[int]*listener{}
	for i, c := range batch {
		if i >= len(m.FDs) {
			refused = append(refused, c.id)
			continue
		}
		l, ok := listeners[c.socket]
		if !ok {
			l = r.find(c.socket)
			listeners[c.socket] = l
		}
		if l == nil || !l.gate.Reserve() { // until deliver, or drop
			fd.CloseAll(m.FDs[i : i+1])
			refused = append(refused, c.id)
			continue
		}
		conn, err := receiveConn(m.FDs[i], c.custom)
		if err != nil {
			l.gate.Unreserve()
			refused = append(refused, c.id)
			continue
		}
		r.held[c.id] = received{conn, l, c.unread, c.custom, c.past}
		took = append(took, c.id)
	}
	r.ch.Send(control.Message{Type: msgTook, Payload: encodeIDs(took, refused)})
	return nil
}

func (r *receiver) onVerdict(m control.Message) error {
	yours, mine, err := decodeIDs(m.Payload)
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

// onEnd: old is dead, and what it has sent was read. What we took is ours, though
// no verdict has come, unless old had taken it back: perhaps it has read a part
// of a request.
func (r *receiver) onEnd() {
	for id, c := range r.held {
		if n, err := fd.Of(c.conn); err != nil || isTakenBack(n) {
			r.drop(id)
		} else {
			r.deliver(id)
		}
	}
}

// drop closes this process's copy of a connection that stays old's.
func (r *receiver) drop(id uint32) {
	if c, ok := r.held[id]; ok {
		delete(r.held, id)
		c.conn.Close()
		c.l.gate.Unreserve()
	}
}

func (r *receiver) deliver(id uint32) {
	c, ok := r.held[id]
	if !ok {
		return
	}
	delete(r.held, id)
	t := tracked(c.conn, c.l, c.unread, nil, nil)
	moved := trackOf(t)
	moved.come(c.past)
	if c.custom {
		moved.customize()
	}
	c.l.give(t)
	c.l.gate.Unreserve()
}
