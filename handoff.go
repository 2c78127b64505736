package grace

import (
	"fmt"

	"github.com/julofinance/grace/v3/internal/control"
)

// What crosses between the two processes of a hand-over.
//
// The old process writes the manifest into the control channel before it forks,
// so that the new process has everything from its first moment, whatever becomes
// of the old one. The rest is a conversation of typed messages, in this order:
//
//	new -> old  state      the old one's state in memory is wanted; with a socket on which that is saved
//	new -> old  claims     the sockets that it took, and whether it waits for exclusive state
//	new -> old  "ready 1"  on the readiness pipe
//	old                    if it has exclusive state that new waits for: accepts no more, finishes, releases it
//	old -> new  go         the old process has decided: it won't kill the new one for being late
//	new                    acquires that state, also from an old process that knows of none, and asks now
//	                       for state in memory, which does not change any more
//	new -> old  accepting  the PID file is switched, the new process accepts; the claims, if they have changed
//	old                    stops accepting; probation begins
//
// Without go, the old process could kill a new process that is late at the very
// moment in which it begins to accept, together with the connections that it has
// just accepted. A new process that sees the channel close instead of go carries
// on: the old process is dead.

// protocolVersion is the version of the manifest and of the messages. It goes
// up when a process of the other version could not carry out the hand-over.
const protocolVersion = 1

// readyLine is what the new process writes down the readiness pipe.
var readyLine = fmt.Sprintf("ready %d\n", protocolVersion)

// stopMessage is a message of type msgStop, in either direction.
type stopMessage struct {
	Now bool
	// Leave is set by a new process that gives up by itself: the old process is to
	// take over again. Without it, the new process was asked to stop the service.
	Leave bool
	// Early is set by a new process that was told to stop before it took go, and takes
	// it no more: the old process serves on.
	Early bool
}

const (
	msgManifest  control.Type = 'M' // old -> new: manifest
	msgClaims    control.Type = 'R' // new -> old: claims
	msgGo        control.Type = 'G' // old -> new
	msgAccepting control.Type = 'A' // new -> old: claims, if they have changed
	msgStop      control.Type = 'S' // either: stopMessage
	msgUpgrade   control.Type = 'U' // old -> new: upgrade once the old process is gone
	msgFailed    control.Type = 'F' // new -> old: why the new process gives up, as text
	msgMain      control.Type = 'P' // old -> new: systemd takes the new process for the main process now
	msgTakes     control.Type = 'T' // new -> old: claims.Takes, more of them
	// The types C, K and V are for connections that move, and B for one that a health
	// check is made over: see internal/sockets.
	msgPing    control.Type = 'Q' // old -> new: is the goroutine that owns the state well?
	msgPong    control.Type = 'O' // new -> old: its answer
	msgLinger  control.Type = 'L' // old -> new: the old process lingers; with the new one's end of its leash
	msgState   control.Type = 'D' // new -> old: save your state on the socket that comes with this, see CarryState
	msgWatched control.Type = 'W' // either: pid, as text, of one that lingers and waits for the end of both; see tellWatched
	msgHanded  control.Type = 'H' // new -> old: a third process serves; with a payload, no more
)

// sayLeft tells a process that hangs while it is started that this process has stopped
// waiting for it. A process that forks (see command.fork) can't be killed before it has
// executed its program, and by then this process may be gone. So this is the first message
// that it reads: the end of the channel alone would mean that this process is dead, and the
// new process would serve.
func sayLeft(ch *control.Channel) { ch.Send(control.NewMessage(msgStop, &stopMessage{Now: true})) }

// saysLeft reports whether the next message is that of sayLeft, and does not
// consume it.
func saysLeft(ch *control.Channel) bool {
	t, ok := ch.Peek()
	return ok && t == msgStop
}

// How a stopMessage is written as records: see control.Records.

func (s *stopMessage) Encode(r *control.Records) {
	r.Flag("now", s.Now)
	r.Flag("leave", s.Leave)
	r.Flag("early", s.Early)
	r.End()
}

func (s *stopMessage) Decode(payload []byte) error {
	*s = stopMessage{}
	return control.ReadRecords(payload, func() {}, func(f *control.Field) {
		switch f.Key {
		case "now":
			s.Now = f.Flag()
		case "leave":
			s.Leave = f.Flag()
		case "early":
			s.Early = f.Flag()
		}
	})
}
