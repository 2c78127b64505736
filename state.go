package grace

// A State tells what the process does with its sockets. Later versions may have
// more states, and pass through one where this version does not.
type State int

// The states of an Upgrader, in the order of an upgrade.
const (
	StateStarting   State = iota // it accepts nothing before Ready
	StateServing                 // it accepts
	StateUpgrading               // it accepts, while a new process starts
	StatePaused                  // what comes waits: exclusive state changes hands, see Exclusive
	StateStandingBy              // the new process accepts; it takes over again should that one die
	StateLameDuck                // it accepts still, and is to stop: see LameDuck
	StateDraining                // it finishes what it has begun
	StateLingering               // it finishes long streams, while the new process may be upgraded: see Linger
	StateStopped                 // Done is closed, or about to be
)

// String returns the state in lower case: starting, serving, upgrading, paused, standing
// by, lame duck, draining, lingering, stopped.
func (s State) String() string {
	if names := [...]string{"starting", "serving", "upgrading", "paused", "standing by", "lame duck", "draining", "lingering", "stopped"}; s >= 0 && int(s) < len(names) {
		return names[s]
	}
	return "unknown"
}

// State returns the state of this moment, for a status page or a health check:
// the next moment it may be another one.
func (u *Upgrader) State() State {
	now := make(chan state, 1)
	if !u.post(func() { now <- u.m.state }) {
		return StateStopped
	}
	return (<-now).public()
}

// public gives the state as it is shown outside. One that resumes accepts.
func (s state) public() State {
	switch s {
	case starting:
		return StateStarting
	case upgrading:
		return StateUpgrading
	case releasing, acquiring:
		return StatePaused
	case standingBy:
		return StateStandingBy
	case lameDuck:
		return StateLameDuck
	case draining, holding:
		return StateDraining
	case lingering:
		return StateLingering
	case stopped:
		return StateStopped
	}
	return StateServing
}
