package grace

import (
	"errors"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/julofinance/grace/v3/internal/manifest"
	"github.com/julofinance/grace/v3/internal/proc"
)

// A master is another program that owns the sockets and has started us. It is
// recognised by the environment alone, in the order of the kinds below; the
// first that is there counts, the others' variables are taken away with it.
type master struct {
	name     string // for the log: socketmaster, einhorn, start_server, systemd
	variable string // that names its descriptors, for errors
	pid      int    // 0: none that could be signalled
	wrapper  int    // our parent, if that is not the master: a shell without exec
	child    int    // the pid by which the master knows us: the wrapper's or ours
	socket   uint64 // the inode of a socket that the master holds too
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
	manifest.Entry     // Kind, Network, Bound, V6Only and, if the master gives one, Name
	fd             int // close-on-exec already
}

// fromMaster adds what the master m has passed.
func (s *sockets) fromMaster(m *master) {
	if m == nil {
		return
	}
	s.anyAddr = m.anyAddr
	for _, ms := range m.sockets {
		s.unclaimed = append(s.unclaimed, inheritedSocket{Entry: ms.Entry, index: -1, fd: ms.fd})
	}
}

// taken: its descriptors belong to an Upgrader. The master is still ours.
func (m *master) taken() {
	if m != nil {
		m.sockets = nil
	}
}

// underMaster says whether upgrades are a master's to do.
func (u *Upgrader) underMaster() bool { return u.master != nil && u.master.siblings }

// joinMaster says who the master is, and watches those above us.
func (u *Upgrader) joinMaster() {
	m := u.master
	if !u.underMaster() {
		return
	}
	u.log.Info("grace: a master has started this process; upgrades are its to do", "master", m.name, "masterpid", m.pid, "sockets", len(m.sockets))
	if m.wrapper != 0 && m.pid != 0 {
		// It got the signal that was meant for us, and has not passed it on.
		proc.WhenGone(m.wrapper, func() {
			u.happen(evStop{stopRequest{reason: "the script between the master and this process has ended"}})
		})
	}
	if m.pid > 1 {
		proc.WhenGone(m.pid, func() { u.happen(evMasterGone{}) })
	}
}

const adviceMasterGone = "stop this process with SIGTERM, then start the master again"

// tellMaster is called when this process accepts. It serves on if the master
// can't be told: that one then goes on as if we had never been ready.
func (u *Upgrader) tellMaster() {
	m := u.master
	if m == nil {
		return
	}
	for _, in := range u.socks.leftover() {
		u.log.Warn("grace: the master has passed a socket that no Listen has asked for; connections there wait in vain",
			"master", m.name, "variable", m.variable, "descriptor", in.fd, "bound", in.Bound)
	}
	if m.ready == nil {
		return
	}
	go func() {
		if err := m.ready(); err != nil {
			do := "see why; until it is told it may keep the old process"
			if own := (*startError)(nil); errors.As(err, &own) {
				do = own.do
			}
			u.log.Error("grace: the master can't be told that this process is ready", "err", err, "do", do)
		}
	}()
}

// leftover are the sockets that nobody has asked for.
func (s *sockets) leftover() []inheritedSocket {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.unclaimed)
}

// claimMasters takes a socket that a master has passed and that is not bound as
// was asked for: in socketmaster mode the next one, whatever the address; else
// the only one with the same port. s.mu is held.
func (s *sockets) claimMasters(k manifest.Kind, network, addr string) int {
	found := -1
	for i, in := range s.unclaimed {
		if !in.Master || in.Kind != k {
			continue
		}
		if s.anyAddr {
			return i
		}
		if samePort(in.Entry, network, addr) {
			if found >= 0 {
				return -1
			}
			found = i
		}
	}
	return found
}

func samePort(e manifest.Entry, network, addr string) bool {
	if strings.TrimRight(network, "46") != strings.TrimRight(e.Network, "46") {
		return false
	}
	_, port, err := net.SplitHostPort(addr)
	_, bound, berr := net.SplitHostPort(e.Bound)
	if err != nil || berr != nil {
		return false
	}
	p, err := net.LookupPort(network, port)
	return err == nil && p != 0 && strconv.Itoa(p) == bound
}
