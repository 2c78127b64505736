package grace

import (
	"errors"

	"github.com/julofinance/grace/v3/internal/hint"
	"github.com/julofinance/grace/v3/internal/master"
	"github.com/julofinance/grace/v3/internal/proc"
)

// theMaster is the program that has started this one. A process that was handed
// its sockets by an old one has none, whatever the environment says.
var theMaster, theMasterErr = masterUnless(inherited)

func masterUnless(h *handover) (*master.Master, error) {
	if h != nil {
		return nil, nil
	}
	return master.Found()
}

// underMaster reports whether upgrades are a master's to do.
func (u *Upgrader) underMaster() bool { return u.master != nil && u.master.Siblings }

// joinMaster finds out which process the master is, and watches those above us.
func (u *Upgrader) joinMaster() {
	m := u.master
	if !u.underMaster() {
		return
	}
	u.log.Info("grace: a master has started this process; it has to do the upgrades", "master", m.Name, "masterpid", m.Pid, "sockets", len(m.Sockets))
	if m.Wrapper != 0 && m.Pid != 0 {
		// The wrapper got the signal that was meant for us, and has not passed it
		// on.
		proc.WhenGone(m.Wrapper, func() {
			u.happen(evStop{stopRequest{reason: "the script between the master and this process has ended"}})
		})
	}
	if m.Pid > 1 {
		proc.WhenGone(m.Pid, func() { u.happen(evMasterGone{}) })
	}
}

// tellMaster is called when this process accepts. It serves on if the master
// can't be told: that one then goes on as if we had never been ready.
func (u *Upgrader) tellMaster() {
	m := u.master
	if m == nil {
		return
	}
	for _, in := range u.socks.Leftover() {
		u.log.Warn("grace: an inherited socket is not used by any listener; its connections will not be accepted",
			"master", m.Name, "variable", m.Variable, "descriptor", in.FD, "bound", in.Bound)
	}
	if m.Ready == nil {
		return
	}
	go func() {
		if err := m.Ready(); err != nil {
			do := "see why; until it is told it may keep the old process"
			if own := (*hint.Error)(nil); errors.As(err, &own) {
				do = own.Do
			}
			u.log.Error("grace: the master can't be told that this process is ready", "err", err, "hint", do)
		}
	}()
}
