package grace

import (
	"encoding/binary"
	"fmt"

	"github.com/julofinance/grace/v3/internal/sdnotify"
)

// What crosses between the two processes of a hand-over.
//
// Old writes the manifest into the control channel before it forks, so that a
// process that exists has everything, whatever becomes of old from then on.
// The rest is a conversation of typed messages, in this order:
//
//	new -> old  claims     the sockets that it took
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
	Binary     string // where Path led to then
	// Systemd is there if it is to be told of what happens.
	Systemd *sdnotify.Manager
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
	// kindPIDLock is the locked file beside the PID file; it comes last.
	kindPIDLock kind = "pidlock"
)

// claims is what new says before it is ready.
type claims struct {
	Sockets []int // indexes into manifest.Sockets
	// Takes says for each of Sockets of which protocol new takes moved
	// connections. What it comes to take later has a message of its own.
	Takes []string
	// Pongs says that new answers when it is asked whether it is well.
	Pongs bool
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
	// Early is said by a new process that was told to stop before it had go: old
	// serves on.
	Early bool
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
	msgPing      messageType = 'Q' // old -> new: is the goroutine that owns the state well?
	msgPong      messageType = 'O' // new -> old: its answer
	msgHanded    messageType = 'H' // new -> old: a third process serves; with a payload, no more
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
	maxFDs      = 253 // SCM_MAX_FD of Linux, see unix(7)

	// maxPayload is that of a message. The manifest and the claims have a record
	// for each socket besides: a path, quoted, is the longest that it has.
	maxPayload   = 256 << 10
	maxPerSocket = 32 << 10
	// keptBuffer is how much a channel keeps to read into after a large message.
	keptBuffer = 64 << 10
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

func (m message) decode(v body) error {
	if err := v.decode(m.payload); err != nil {
		return fmt.Errorf("%w: message %q on the control channel: %w", ErrProtocol, m.typ, err)
	}
	return nil
}
