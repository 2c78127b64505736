package grace

import (
	"errors"
	"fmt"
	"net"
	"runtime/debug"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/julofinance/grace/v3/internal/control"
	"github.com/julofinance/grace/v3/internal/fd"
	"github.com/julofinance/grace/v3/internal/manifest"
)

// How processes that linger are held together: see part 4 of machine_steps.go.
//
// A leash is a pair of sockets. The process that lingers has one end for as long as it
// lives. It gives the other one to its child, which gives it to its own child at an upgrade,
// and so on; during a hand-over two processes have it, and either may read from it. So
// each message is one byte. No process waits for another: a byte that the kernel does not
// take within a second is given up.
const (
	leashEnd     = 'e' // to the one that lingers: end within DrainTimeout
	leashEndNow  = 'n' // at once
	leashStop    = 's' // from the one that lingers: the service is to stop
	leashStopNow = 'S'
	leashUpgrade = 'u' // the service is to be upgraded
)

// sendOnLeash does not wait.
func sendOnLeash(c *net.UnixConn, b byte) {
	go func() {
		c.SetWriteDeadline(time.Now().Add(time.Second))
		c.Write([]byte{b})
	}()
}

// hearLeash calls heard for each message, and gone when all copies of the other end are
// closed; it returns without that when this end is.
func hearLeash(c *net.UnixConn, heard func(byte), gone func()) {
	b := make([]byte, 1)
	for {
		switch n, err := c.Read(b); {
		case n == 1:
			heard(b[0])
		case errors.Is(err, net.ErrClosed):
			return
		default:
			gone()
			return
		}
	}
}

// leashes are this process's ends of those of older processes, the oldest first.
type leashes struct {
	mu   sync.Mutex
	all  []*leash       // guarded by mu
	hear func(l *leash) // set by watch; guarded by mu
}

type leash struct {
	pid  int
	conn *net.UnixConn
}

// add adds one, which is heard from now on if watch was called.
func (ls *leashes) add(l *leash) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	ls.all = append(ls.all, l)
	if ls.hear != nil {
		go ls.hear(l)
	}
}

// watch lets hear hear each of them, in a goroutine of its own. A process that is not
// ready hears none: what they say is for the one that serves.
func (ls *leashes) watch(hear func(*leash)) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	ls.hear = hear
	for _, l := range ls.all {
		go hear(l)
	}
}

// lend gives descriptors of all of them, for a new process, and what the manifest says
// of each.
func (ls *leashes) lend() (entries []manifest.Entry, ends []int, err error) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	for _, l := range ls.all {
		n, err := fd.Dup(l.conn)
		if err != nil {
			fd.CloseAll(ends)
			return nil, nil, fmt.Errorf("no descriptor to pass a process that lingers, pid %d, to a new one: %w", l.pid, err)
		}
		entries = append(entries, manifest.Entry{Kind: manifest.Leash, Addr: strconv.Itoa(l.pid)})
		ends = append(ends, n)
	}
	return entries, ends, nil
}

func (ls *leashes) send(pid int, b byte) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	for _, l := range ls.all {
		if l.pid == pid {
			sendOnLeash(l.conn, b)
		}
	}
}

// drop closes the leash l: that process is gone.
func (ls *leashes) drop(l *leash) {
	ls.mu.Lock()
	ls.all = slices.DeleteFunc(ls.all, func(other *leash) bool { return other == l })
	ls.mu.Unlock()
	l.conn.Close()
}

// dropAll leaves all of them to the child.
func (ls *leashes) dropAll() {
	ls.mu.Lock()
	all := ls.all
	ls.all = nil
	ls.mu.Unlock()
	for _, l := range all {
		l.conn.Close()
	}
}

// lingerers is what the machine knows of them at its start.
func (ls *leashes) lingerers() (all []lingerer) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	for _, l := range ls.all {
		all = append(all, lingerer{pid: l.pid})
	}
	return all
}

// takeLeashes takes those that the old process has handed over out of m. first is the
// descriptor of its first entry.
func (u *Upgrader) takeLeashes(m *manifest.Manifest, first int) {
	n := slices.IndexFunc(m.Sockets, func(e manifest.Entry) bool { return e.Kind == manifest.Leash })
	if n < 0 {
		return
	}
	for i, e := range m.Sockets[n:] {
		pid, _ := strconv.Atoi(e.Addr)
		conn, err := fd.NewUnixConn(first + n + i)
		if err != nil { // that process sees it, and ends
			u.log.Warn("grace: the leash of an older process that lingers can't be used; that one ends within its DrainTimeout", "old", pid, "err", err)
			continue
		}
		u.leashes.add(&leash{pid, conn})
	}
	m.Sockets = m.Sockets[:n]
}

// keepParent takes the leash of the old process, which lingers.
func (u *Upgrader) keepParent(conn *net.UnixConn) {
	u.leashes.add(&leash{u.parent.m.Pid, conn})
	u.happen(evParentLingers{})
}

// hearLingerer tells the machine what an older process says, until that is gone.
func (u *Upgrader) hearLingerer(l *leash) {
	hearLeash(l.conn, func(b byte) {
		switch b {
		case leashUpgrade:
			u.happen(evSignal{fromPeer, time.Now()})
		case leashStop, leashStopNow:
			u.happen(evStop{stopRequest{at: time.Now(), now: b == leashStopNow, reason: fmt.Sprintf("process %d, which a supervisor takes for the service, was told to stop", l.pid), watched: l.pid}})
		}
	}, func() {
		u.leashes.drop(l)
		u.happen(evLingererGone{l.pid})
	})
}

// An ownLeash is that of this process.
type ownLeash struct {
	conn   *net.UnixConn
	theirs int // the other end, until the child has it
}

func (l *ownLeash) close() {
	if l != nil {
		l.conn.Close()
		fd.CloseAll([]int{l.theirs})
	}
}

func (p performer) makeLeash() {
	u, id := p.u, p.u.child.id
	go func() {
		conn, theirs, err := control.Pair()
		made := &ownLeash{conn, theirs}
		keep := func() {
			if err == nil {
				former := u.leash
				u.leash = made
				go former.close() // of an upgrade that was rolled back
			}
			u.m.on(evLeashMade{id, err})
		}
		if !u.post(keep) && err == nil {
			made.close()
		}
	}()
}

func (p performer) linger() {
	u := p.u
	u.drain.Limit(u.opt.linger)
	go u.beginLingering(u.child, u.leash, u.handOverMain())
}

// beginLingering gives up what belongs to the service, in the order in which the child
// may rely on it: the child may be upgraded once it has the leash.
func (u *Upgrader) beginLingering(c *child, own *ownLeash, tellManager func()) {
	within(endPatience, u.socks.LetGo)
	if u.pid != nil {
		within(endPatience, func() { u.pid.giveUp(true, false) })
	}
	if tellManager != nil {
		tellManager()
	}
	c.ch.Send(control.NewMessage(msgMain, nil))
	c.ch.SendThen(control.Message{Type: msgLinger, FDs: []int{own.theirs}}, func(error) { fd.CloseAll([]int{own.theirs}) })
	u.leashes.dropAll()
	u.happen(evLeft{})
	go hearLeash(own.conn, func(b byte) { u.happen(evLeash{now: b == leashEndNow}) }, func() { u.happen(evLeash{gone: true}) })
	debug.FreeOSMemory()
	// Idle connections that could not move end meanwhile.
	time.AfterFunc(u.opt.idleGrace+time.Second, debug.FreeOSMemory)
}

func (p performer) limitDrain() { p.u.drain.Limit(p.u.opt.drainTimeout) }

func (p performer) pullLeash(stop, now bool) {
	b := byte(leashUpgrade)
	switch {
	case stop && now:
		b = leashStopNow
	case stop:
		b = leashStop
	}
	sendOnLeash(p.u.leash.conn, b)
}

func (p performer) tellWatched(pid int) {
	m := control.Message{Type: msgWatched, Payload: []byte(strconv.Itoa(pid))}
	if p.u.child != nil {
		p.u.child.ch.Send(m)
	}
	if p.u.parent != nil {
		p.u.parent.ch.Send(m)
	}
}

// watchedOf reads what tellWatched has sent.
func watchedOf(m control.Message) evWatched {
	pid, _ := strconv.Atoi(string(m.Payload))
	return evWatched{pid}
}

func (p performer) endLingerer(pid int, now bool) {
	b := byte(leashEnd)
	if now {
		b = leashEndNow
	}
	p.u.leashes.send(pid, b)
}
