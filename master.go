package grace

import (
	"errors"
	"os"

	"github.com/julofinance/grace/v3/internal/proc"
	"github.com/julofinance/grace/v3/internal/sockets"
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
	sockets      []sockets.Passed

	// ready tells the master that this process accepts; nil: it wants no word.
	ready func() error
	// upgrade asks the master for an upgrade; nil: this process does its own.
	upgrade func() error
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
	for _, in := range u.socks.Leftover() {
		u.log.Warn("grace: the master has passed a socket that no Listen has asked for; connections there wait in vain",
			"master", m.name, "variable", m.variable, "descriptor", in.FD, "bound", in.Bound)
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
