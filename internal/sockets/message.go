package sockets

import (
	"encoding/binary"
	"fmt"
	"math"
	"time"

	"github.com/julofinance/grace/v3/internal/control"
)

// A message of connections is a list of: id, index of the socket, length of
// the unread bytes, milliseconds until its read deadline (0 if there is none),
// each as 4 bytes, big-endian; the bytes. Descriptors are in the same order. The
// index has customBit if the options of the connection may differ from those of
// a new one, freshBit if no request has reached a server of net/http, postBit if
// the last one was a POST, tlsBit if the bytes are a tls13.State.
const (
	customBit = 1 << 31
	freshBit  = 1 << 30
	postBit   = 1 << 29
	tlsBit    = 1 << 28

	flagBits = customBit | freshBit | postBit | tlsBit

	ConnHeader = 16
)

func EncodeConns(batch []*Moving) control.Message {
	m := control.Message{Type: MsgConns}
	size := 0
	for _, c := range batch {
		size += ConnHeader + len(c.Unread)
		m.Secret = m.Secret || c.tls
	}
	m.Payload = make([]byte, 0, size) // all at once: of a secret there is to be no other copy
	for _, c := range batch {
		m.Payload = binary.BigEndian.AppendUint32(m.Payload, c.ID)
		socket := uint32(c.socket)
		if c.custom {
			socket |= customBit
		}
		if c.past.source == sourceFresh {
			socket |= freshBit
		}
		if c.past.post {
			socket |= postBit
		}
		if c.tls {
			socket |= tlsBit
		}
		left := uint32(0)
		if ms := c.past.left.Milliseconds(); ms <= math.MaxUint32 {
			left = uint32(ms)
		}
		m.Payload = binary.BigEndian.AppendUint32(m.Payload, socket)
		m.Payload = binary.BigEndian.AppendUint32(m.Payload, uint32(len(c.Unread)))
		m.Payload = binary.BigEndian.AppendUint32(m.Payload, left)
		m.Payload = append(m.Payload, c.Unread...)
		m.FDs = append(m.FDs, c.fd)
	}
	return m
}

func decodeConns(b []byte) (batch []Moving, err error) {
	for len(b) > 0 {
		if len(b) < ConnHeader {
			return nil, errBadMessage
		}
		socket := binary.BigEndian.Uint32(b[4:])
		c := Moving{
			ID: binary.BigEndian.Uint32(b), socket: int(socket &^ flagBits), custom: socket&customBit != 0, tls: socket&tlsBit != 0,
			past: past{source: sourceIdle, post: socket&postBit != 0, left: time.Duration(binary.BigEndian.Uint32(b[12:])) * time.Millisecond},
		}
		if socket&freshBit != 0 {
			c.past.source = sourceFresh
		}
		n := binary.BigEndian.Uint32(b[8:])
		b = b[ConnHeader:]
		if uint64(n) > uint64(len(b)) { // above 2^31 it is negative as an int of 32 bit
			return nil, errBadMessage
		}
		c.Unread = append([]byte(nil), b[:int(n)]...)
		b = b[int(n):]
		batch = append(batch, c)
	}
	return batch, nil
}

var errBadMessage = fmt.Errorf("%w: a message on the control channel is cut short", control.ErrProtocol)

// encodeIDs encodes two lists of ids: the length of the first, then all of both,
// 4 bytes each.
func encodeIDs(a, b []uint32) []byte {
	p := binary.BigEndian.AppendUint32(nil, uint32(len(a)))
	for _, ids := range [2][]uint32{a, b} {
		for _, id := range ids {
			p = binary.BigEndian.AppendUint32(p, id)
		}
	}
	return p
}

func DecodeIDs(p []byte) (a, b []uint32, err error) {
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
