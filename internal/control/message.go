package control

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// ErrProtocol is wrapped by the error of what is no message of this protocol.
var ErrProtocol = errors.New("the new process does not speak this hand-over")

// A Type says what a message is about. The channel does not look at it.
type Type byte

// A Message is one frame of the channel: type, number of descriptors, two bytes of
// zero, length of the payload, payload. The descriptors travel with the frame's first
// byte. The sender keeps its own; the receiver owns those that it gets.
type Message struct {
	Type    Type
	Payload []byte
	FDs     []int
	// Secret is true if no copy of the payload is to be left: what is sent is
	// overwritten, the sender's own too, as soon as the kernel has it.
	Secret bool
}

const (
	frameHeader = 8

	// MaxFDs is how many descriptors a message may have: SCM_MAX_FD of Linux, see unix(7).
	MaxFDs = 253

	// MaxPayload is how many bytes a message may have. A message may have maxPerSocket
	// more for each socket that it tells of: a quoted path is the longest that there is.
	MaxPayload   = 256 << 10
	maxPerSocket = 32 << 10

	// keptBuffer is how many bytes of buffer a channel keeps after a large message.
	keptBuffer = 64 << 10
)

// NewMessage makes a message of type t that carries v, or nothing if v is nil.
func NewMessage(t Type, v Body) Message {
	if v == nil {
		return Message{Type: t}
	}
	var r Records
	v.Encode(&r)
	return Message{Type: t, Payload: r.b}
}

// A Body is what a message carries. decode is given all of the payload.
type Body interface {
	Encode(*Records)
	Decode(payload []byte) error
}

func (m Message) Frame() []byte {
	b := make([]byte, frameHeader, frameHeader+len(m.Payload))
	b[0] = byte(m.Type)
	b[1] = byte(len(m.FDs))
	binary.BigEndian.PutUint32(b[4:], uint32(len(m.Payload)))
	return append(b, m.Payload...)
}

// Decode reads what m carries into v.
func (m Message) Decode(v Body) error {
	if err := v.Decode(m.Payload); err != nil {
		return fmt.Errorf("%w: message %q on the control channel: %w", ErrProtocol, m.Type, err)
	}
	return nil
}
