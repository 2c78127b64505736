package sockets

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net"
	"time"

	"github.com/julofinance/grace/v3/internal/control"
	"github.com/julofinance/grace/v3/internal/fd"
)

// A health check of the new process is made over connections that the old process makes
// and keeps one end of, and whose other end it gives to the new process. So the check
// reaches that process and no other. A connection from outside would wait in the queue of
// the socket, from which any process that has a copy may accept.
//
// To the new process it is one that it has accepted this moment: nothing was read from it,
// and a TLS handshake comes first where TLS is served. So it needs no verdict, as one that
// is moved does: if it does not arrive its end is closed, and the old process sees that.

// MsgProbe goes from the old process to the new one, with one descriptor. It carries the
// index of the socket in the manifest, 4 bytes, big-endian.
const MsgProbe control.Type = 'B'

// probePatience is how long the channel may take for a message without a deadline.
const probePatience = 5 * time.Second

// Probe gives the process at the other end of ch, as handed[index], the far end of a new
// connection, and returns the near end. It is a TCP connection over the loopback interface
// if the socket is TCP, and a pair of unix sockets if it is not.
func Probe(ctx context.Context, ch *control.Channel, handed []*Socket, index int) (net.Conn, error) {
	near, far, err := probePair(ctx, handed[index].Listener.Addr().Network())
	if err != nil {
		return nil, fmt.Errorf("a connection to give to the new process can't be made: %w", err)
	}
	n, err := fd.Of(far)
	if err != nil {
		near.Close()
		far.Close()
		return nil, err
	}
	patience := probePatience
	if end, ok := ctx.Deadline(); ok {
		patience = time.Until(end)
	}
	sent := make(chan error, 1)
	m := control.Message{Type: MsgProbe, Payload: binary.BigEndian.AppendUint32(nil, uint32(index)), FDs: []int{n}}
	ch.SendWithin(patience, m, func(err error) {
		far.Close() // the message has a copy
		sent <- err
	})
	select {
	case err = <-sent:
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil && !errors.Is(err, control.ErrCutShort) { // then the descriptor is there
		near.Close()
		return nil, fmt.Errorf("the connection can't be given to the new process: %w", err)
	}
	return near, nil
}

// probePair makes the two ends of a connection as a listener of network has them.
func probePair(ctx context.Context, network string) (near, far net.Conn, err error) {
	if network != "tcp" {
		return unixPair(network)
	}
	for _, loopback := range []string{"127.0.0.1:0", "[::1]:0"} {
		if near, far, err = tcpPair(ctx, loopback); err == nil {
			return near, far, nil
		}
	}
	// There is no loopback interface in this network namespace, or it is down.
	if near, far, uerr := unixPair("unix"); uerr == nil {
		return near, far, nil
	}
	return nil, nil, err
}

func tcpPair(ctx context.Context, addr string) (near, far net.Conn, err error) {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, nil, err
	}
	defer l.Close()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	near, err = new(net.Dialer).DialContext(ctx, "tcp", l.Addr().String())
	if err != nil {
		return nil, nil, err
	}
	for {
		if far, err = l.Accept(); err != nil {
			near.Close()
			return nil, nil, err
		}
		if far.RemoteAddr().String() == near.LocalAddr().String() {
			return near, far, nil
		}
		far.Close() // of another program, which has come first
	}
}

// TakeProbe gives the connection of a MsgProbe to the listener that it is for. A
// connection that it can't give is closed.
func (s *Set) TakeProbe(m control.Message) {
	if len(m.FDs) != 1 || len(m.Payload) != 4 {
		fd.CloseAll(m.FDs)
		return
	}
	index := int(binary.BigEndian.Uint32(m.Payload) & math.MaxInt32) // -1 is none of the old process's
	for _, sock := range s.Snapshot() {
		if sock.Listener == nil || sock.Index != index {
			continue
		}
		c, err := fd.NewConn(m.FDs[0])
		if err != nil {
			return // NewConn has closed the descriptor
		}
		switch c.(type) {
		case *net.TCPConn, *net.UnixConn:
			sock.Listener.Give(Tracked(c, sock.Listener, nil, nil, nil))
		default:
			c.Close()
		}
		return
	}
	fd.CloseAll(m.FDs)
}
