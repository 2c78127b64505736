// Package master finds the program that has started this one and passes it its sockets:
// socketmaster, einhorn, start_server, or systemd with socket activation. All that it
// knows of it comes from the environment; it takes those variables away when the
// process starts, so that no child inherits them, also where another master counts.
//
// It tells that program when this process is ready, and asks it for an upgrade,
// after it has proven that the pid is still the master's. It does not learn what
// becomes of either.
package master

import (
	"os"

	"github.com/julofinance/grace/v3/internal/sockets"
)

// A Master is another program that owns the sockets and has started this one. It is
// recognised by the environment alone, in the order of masters; the first one that is
// there counts.
type Master struct {
	Name     string // for the log: socketmaster, einhorn, start_server, systemd
	Variable string // that names its descriptors, for errors
	Pid      int    // 0: none that could be signalled
	Wrapper  int    // our parent, if that is not the master: a shell without exec
	child    int    // the pid by which the master knows us: the wrapper's or ours
	socket   uint64 // the inode of a socket that the master holds too
	// Siblings: an upgrade is the master's to do. It starts another child beside
	// us and tells us to drain; we start no process of our own.
	Siblings bool
	// AnyAddr: the address given to Listen is ignored (socketmaster mode).
	AnyAddr bool
	// DrainSignals ask for the drain besides SIGTERM, SIGINT and SIGQUIT; one of
	// them that asks for an upgrade elsewhere does not here.
	DrainSignals []os.Signal
	Sockets      []sockets.Passed

	// Ready tells the master that this process accepts; nil: it wants no word.
	Ready func() error
	// Upgrade asks the master for an upgrade; nil: this process does its own.
	Upgrade func() error
}

// Taken notes that the descriptors of m belong to an Upgrader now. m may be nil.
func (m *Master) Taken() {
	if m != nil {
		m.Sockets = nil
	}
}

// AdviceMasterGone is the hint where the master has ended.
const AdviceMasterGone = "stop this process with SIGTERM, then start the master again"

// Found gives the program that has started this one, if it is one of the known masters;
// the error says which of its variables can't be trusted.
func Found() (*Master, error) { return given, givenErr }
