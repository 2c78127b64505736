package grace

import "os"

// A master is another program that owns the sockets and has started us. It is
// recognised by the environment alone, in the order of the kinds below; the
// first that is there counts, the others' variables are taken away with it.
type master struct {
	name     string // for the log: socketmaster, einhorn, start_server, systemd
	variable string // that names its descriptors, for errors
	pid      int    // 0: none that could be signalled
	// siblings: an upgrade is the master's to do. It starts another child beside
	// us and tells us to drain; we start no process of our own.
	siblings bool
	// anyAddr: the address given to Listen is ignored (socketmaster mode).
	anyAddr bool
	// drainSignals ask for the drain besides SIGTERM, SIGINT and SIGQUIT; one of
	// them that asks for an upgrade elsewhere does not here.
	drainSignals []os.Signal
	sockets      []masterSocket

	// ready tells the master that this process accepts; nil: it wants no word.
	ready func() error
	// upgrade asks the master for an upgrade; nil: this process does its own.
	upgrade func() error
}

// A masterSocket is one that a master has passed.
type masterSocket struct {
	entry     // Kind, Network, Bound, V6Only and, if the master gives one, Name
	fd    int // close-on-exec already
}

// fromMaster adds what the master m has passed.
func (s *sockets) fromMaster(m *master) {
	if m == nil {
		return
	}
	s.anyAddr = m.anyAddr
	for _, ms := range m.sockets {
		s.unclaimed = append(s.unclaimed, inheritedSocket{ms.entry, -1, ms.fd})
	}
}

// taken: its descriptors belong to an Upgrader. The master is still ours.
func (m *master) taken() {
	if m != nil {
		m.sockets = nil
	}
}
