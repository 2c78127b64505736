package grace

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

// A successor is the new process, as the old one sees it. Its goroutines read
// the pipe and the channel and wait for its end; they only post what they see.
type successor struct {
	proc   process
	ch     *channel
	pipe   *os.File  // read end of the readiness pipe
	handed []*socket // by their index in the manifest

	mover    *mover    // from the time that it accepts
	line     bool      // the ready line has come
	claims   *claims   // have come
	went     bool      // go was sent: it may accept, and name itself in the PID file
	accepted bool      // it has said that it accepts
	since    time.Time // when it has said so, or later that it gives up
	alone    bool      // this process was told to end while new serves on
	orderly  bool      // it was asked to stop: its end is no reason to roll back
	left     bool      // it has given up by itself and drains
	killed   error     // why we killed it, one of the Err values
	told     error     // why it says that it gives up
	late     *time.Timer
	launched time.Time

	unkillable bool  // a kill has failed
	handedOver bool  // it has a successor of its own
	deaf       error // why this process can't hear it any more; it lives
	// Whether it is well: how often it was asked, how often it has answered, and
	// what waits for an answer. See ask.
	pings, pongs int
	waiting      []func()
	silence      *time.Timer
}

// launch starts the new process. It runs outside of the Upgrader's goroutine,
// since BeforeUpgrade may take its time.
func (u *Upgrader) launch(ctx context.Context) (*successor, error) {
	if err := u.wouldEndService(); err != nil {
		return nil, err
	}
	if err := u.mayUpgrade(ctx); err != nil {
		return nil, err
	}
	begun := time.Now()
	ctx, cancel := context.WithTimeout(ctx, u.opt.readyTimeout)
	defer cancel()
	s, err := u.startOrLeave(ctx)
	if err == nil {
		s.launched = begun
		return s, nil
	}
	failure := &UpgradeError{Reason: ErrStart, Err: err}
	var stuck *stuckError
	if errors.As(err, &stuck) {
		failure.Pid, failure.Reason = stuck.pid, ErrReadyTimeout
		if errors.Is(ctx.Err(), context.Canceled) {
			failure.Reason = ErrStopped
		}
	}
	return nil, failure
}

// mayUpgrade asks BeforeUpgrade.
func (u *Upgrader) mayUpgrade(ctx context.Context) error {
	check := u.opt.beforeUpgrade
	if check == nil {
		return nil
	}
	if !u.checking.CompareAndSwap(false, true) {
		return &UpgradeError{Reason: ErrRefused, Err: errors.New("BeforeUpgrade, called for an upgrade before, has still not returned")}
	}
	ctx, cancel := context.WithTimeout(ctx, u.opt.readyTimeout)
	defer cancel()
	result := make(chan error, 1)
	go func() {
		err := errors.New("BeforeUpgrade has ended its goroutine")
		defer func() { u.checking.Store(false); result <- err }()
		err = u.callHook(ctx, "BeforeUpgrade", check)
	}()
	if err := u.await(ctx, result); err != nil {
		return &UpgradeError{Reason: ErrRefused, Err: err}
	}
	return nil
}

// hookGrace is how long BeforeUpgrade may take to return, and say what it was at,
// when its time is up.
const hookGrace = time.Second

// await waits for BeforeUpgrade. One that does not heed its context is left
// behind: it must keep the process neither from serving on nor from ending.
func (u *Upgrader) await(ctx context.Context, result <-chan error) error {
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
	}
	grace := time.NewTimer(hookGrace)
	defer grace.Stop()
	select {
	case err := <-result:
		return err
	case <-u.ctx.Done():
		return ErrStopped
	case <-grace.C:
		return fmt.Errorf("BeforeUpgrade has not returned within %v, and does not heed its context", u.opt.readyTimeout)
	}
}

func (u *Upgrader) start(ctx context.Context) (s *successor, err error) {
	cmd := u.opt.command(u.home)
	cmd.sibling = u.notify.isParent()
	if cmd, err = cmd.find(ctx); err != nil {
		return nil, err
	}
	if err := roomForProcess(); err != nil {
		return nil, err
	}
	conn, theirs, err := controlPair()
	if err != nil {
		return nil, err
	}
	defer closeAll([]int{theirs})
	ch := newChannel(conn)
	pipe, theirPipe, err := os.Pipe()
	if err != nil {
		ch.close()
		return nil, err
	}
	defer theirPipe.Close()
	var lock []int // of the PID file, or none
	if u.pid != nil {
		if lock, err = u.pid.lend(); err != nil {
			pipe.Close()
			ch.close()
			return nil, &startError{err, "see to it that this process can use the PID file and the lock beside it, as the error says, and send the signal again"}
		}
		defer closeAll(lock)
	}
	s = &successor{ch: ch, pipe: pipe}
	raw, err := theirPipe.SyscallConn()
	if err == nil {
		cerr := raw.Control(func(ready uintptr) {
			err = withFDs(u.socks.toHandOver(), func(socks []*socket, fds []int) error {
				s.handed = socks
				m := u.manifest(socks)
				for range lock {
					m.Sockets = append(m.Sockets, entry{Kind: kindPIDLock})
				}
				if err := ch.prewrite(newMessage(msgManifest, m)); err != nil {
					return fmt.Errorf("control channel: %w", err)
				}
				s.mover = newMover(s)
				s.mover.grace = u.opt.idleGrace
				s.mover.stuck = func(err error) { u.post(func() { u.onStuck(s, err) }) }
				ch.most += maxPerSocket * min(len(socks), 1<<14)
				told := context.AfterFunc(ctx, ch.sayLeft)
				defer told()
				s.proc, err = u.begin(ctx, cmd, func(c command) (process, error) {
					if ctx.Err() != nil { // what hung until now was left behind
						return nil, &stuckError{path: c.path, doing: "for the PID file, the binary or a socket"}
					}
					return u.sys.start(ctx, c, int(ready), theirs, append(fds, lock...))
				})
				return err
			})
		})
		err = errors.Join(cerr, err)
	}
	if err != nil {
		pipe.Close()
		ch.close()
		return nil, err
	}
	return s, nil
}

func (u *Upgrader) manifest(socks []*socket) *manifest {
	m := &manifest{
		Version: protocolVersion, Pid: os.Getpid(), Generation: u.generation + 1,
		Dir: u.home.dir, Path: u.home.path, Binary: u.home.real, Systemd: u.notify.manager(), Sockets: make([]entry, 0, len(socks)),
	}
	for _, s := range socks {
		m.Sockets = append(m.Sockets, s.entry)
	}
	return m
}

// watch posts what the new process does.
func (u *Upgrader) watch(s *successor) {
	lineRead := make(chan struct{})
	go func() {
		defer close(lineRead)
		line, err := readLine(s.pipe)
		u.post(func() { u.onLine(s, line, err) })
	}()
	channelRead := make(chan struct{})
	s.ch.run(func(m message) {
		if m.typ == msgTook {
			s.onTook(m)
			return
		}
		u.post(func() { u.onMessage(s, m) })
	}, func(err error) {
		s.mover.stop()
		close(channelRead)
		u.post(func() { u.onDeaf(s, err) })
	})
	go func() {
		state, err := s.proc.wait()
		// Grandchildren may hold the pipe and the channel open: what the dead
		// process itself has written is read, and nobody is waited for.
		end := time.Now().Add(500 * time.Millisecond)
		s.pipe.SetReadDeadline(end)
		s.ch.conn.SetReadDeadline(end)
		<-lineRead
		<-channelRead
		s.pipe.Close()
		u.post(func() { u.onExit(s, state, err) })
	}()
}

// readLine reads one short line: enough to see that it is ours.
func readLine(r io.Reader) (string, error) {
	line, err := bufio.NewReader(io.LimitReader(r, 64)).ReadString('\n')
	if line != "" {
		err = nil
	}
	return line, err
}

// onLine: the readiness pipe has said something, or was closed.
func (u *Upgrader) onLine(s *successor, line string, err error) {
	switch {
	case !u.mayServe(s) || s.killed != nil:
	case line == readyLine:
		s.line = true
		u.maybeGo(s)
	case err == nil:
		s.told = fmt.Errorf("it wrote %q to the readiness pipe where %q was expected", line, readyLine)
		u.kill(s, ErrProtocol)
	default:
		u.onHungUp(s, errors.New("it closed the readiness pipe without a word"))
	}
}

// hungUpGrace is how long a new process that has hung up may take to end by
// itself.
const hungUpGrace = time.Second

// onHungUp: the pipe or the channel was closed before new was ready. The end of
// the process closes them too, and its exit status says more: wait for it.
func (u *Upgrader) onHungUp(s *successor, why error) {
	time.AfterFunc(hungUpGrace, func() {
		u.post(func() {
			if u.mayServe(s) && s.killed == nil {
				s.told = errors.Join(s.told, why)
				u.kill(s, ErrProtocol)
			}
		})
	})
}

func (u *Upgrader) onMessage(s *successor, m message) {
	defer func() { closeAll(m.fds) }()
	if s != u.next {
		return
	}
	switch m.typ {
	case msgTakes:
		var c claims
		if m.decode(&c) == nil {
			s.mover.learn(c)
			// A drain without a mover moves nothing: MoveConns says so, or new is
			// to stop as well.
			if d := u.drain; d != nil && d.mover != nil {
				go d.offer(u.allServers())
			}
		}
	case msgClaims:
		var c claims
		if err := m.decode(&c); err != nil {
			s.told = err
			u.kill(s, ErrProtocol)
			return
		}
		s.claims = &c
		s.mover.learn(c)
		u.maybeGo(s)
	case msgAccepting:
		var c claims
		if len(m.payload) > 0 && m.decode(&c) == nil && s.claims != nil { // they have changed since
			s.claims.Sockets, s.claims.Takes = c.Sockets, c.Takes
			s.mover.learn(c)
		}
		if s.went && u.mayServe(s) {
			if s.unkillable { // so it was late, no more
				s.killed, s.unkillable = nil, false
			}
			u.onAccepting(s)
		}
	case msgPong:
		u.onPong(s)
	case msgHanded:
		s.handedOver = len(m.payload) == 0
	case msgStop:
		var stop stopMessage
		if m.decode(&stop) == nil {
			u.onSuccessorStops(s, stop)
		}
	case msgFailed:
		s.told = errors.New(strings.TrimPrefix(string(m.payload), "grace: "))
	}
}

func (s *successor) onTook(m message) {
	took, refused, err := decodeIDs(m.payload)
	if err == nil {
		s.mover.onTook(took, refused)
	}
}

// maybeGo decides for the new process. From here on it is not killed for being
// late, unless it hangs before it accepts.
func (u *Upgrader) maybeGo(s *successor) {
	if s.line && s.claims != nil && !s.went && s.killed == nil {
		s.went = true
		s.late.Stop()
		u.watchClock(s, u.opt.readyTimeout) // again: what comes late now hangs
		s.ch.send(newMessage(msgGo, nil))
	}
}

// reason says what ended a new process that was not ready yet.
func (s *successor) reason(state *os.ProcessState) error {
	if s.killed == nil || !killedBySIGKILL(state) {
		return ErrExited
	}
	return s.killed
}

// onExit: the new process has ended and was reaped.
func (u *Upgrader) onExit(s *successor, state *os.ProcessState, err error) {
	s.late.Stop()
	if s != u.next {
		return
	}
	s.ch.close()
	s.mover.stop()
	u.next = nil
	failure := &UpgradeError{Pid: s.proc.pid(), State: state, Err: errors.Join(s.told, err)}
	switch {
	case u.state == stopped:
		u.reportDeath(s, state)
	case u.held:
		u.held = false
		u.finish()
	case u.stopAsked || s.orderly:
		// The service is to end, and its drain has begun: nobody takes over again.
		if s == u.leftTo && !u.ends {
			u.leftTo, u.left = nil, false
			u.log.Error("grace: the new process, which was to serve in place of this one, has ended; nobody serves", "new", s.proc.pid(), "status", status(state))
		}
		u.unask(s)
	case s.left:
		u.settle()
	case s.accepted:
		failure.Reason = ErrRolledBack
		u.rollBack(failure)
	default:
		failure.Reason = s.reason(state)
		u.upgradeFailed(failure)
	}
}

// reportDeath tells of the end of new after this process's own.
func (u *Upgrader) reportDeath(s *successor, state *os.ProcessState) {
	switch {
	case s.orderly || s.handedOver || u.stopAsked:
	case s.deaf != nil:
		u.log.Warn("grace: the new process has ended when this one had finished; it could not say whether another one serves", "new", s.proc.pid(), "status", status(state))
	default:
		u.log.Error("grace: the new process died when this one had finished; nobody serves", "new", s.proc.pid(), "status", status(state))
	}
}

// upgradeFailed: new was never ready, and old goes on as if nothing had been.
func (u *Upgrader) upgradeFailed(err error) {
	u.state = serving
	u.upgrades = repeats{} // what comes now is meant to try again
	u.socks.mendAll()
	u.restore(func(callers []chan error) {
		u.log.Error("grace: upgrade failed; this process goes on serving", "err", err, "do", advice(err))
		u.tellFailed("the upgrade failed", err)
		tell(callers, err)
	})
	u.leave()
}

// rollBack: new is dead, or gives up, and old accepts again at once.
func (u *Upgrader) rollBack(err error) {
	u.probation.Stop()
	u.state = serving
	u.upgrades = repeats{}
	u.socks.reopenGates() // first of all
	if u.drain != nil {
		u.drain.cancel()
	}
	u.tellParentOfSuccessor("gone")
	if u.passed { // to the one that is dead
		u.pending = true
	}
	u.restore(func(callers []chan error) {
		u.log.Error("grace: rolled back; this process accepts again", "err", err, "do", advice(err))
		u.tellFailed("the upgrade was rolled back", err)
		tell(callers, err)
	})
	if d := u.drain; d != nil && d.over { // it has waited only for new to say that it is well
		u.onDrained(d)
	}
}

// retakePIDFile puts this process's pid back, if new has put its own there.
func (u *Upgrader) retakePIDFile() {
	if u.pid == nil {
		return
	}
	if err := u.pid.retake(); err != nil {
		u.log.Error("grace: the PID file can't be taken back", "err", err)
	}
}

// onSuccessorStops: new begins to end, and says why.
func (u *Upgrader) onSuccessorStops(s *successor, stop stopMessage) {
	if !s.went || stop.Early { // it will exit, and was never ready
		if !stop.Leave && s.told == nil {
			s.told = errors.New("it was told to stop before it was ready")
		}
		return
	}
	if !stop.Leave {
		if s.left && time.Since(s.since) > passOnFor { // it is not the service any more
			u.log.Info("grace: stop asked of a new process that has given up long ago; this process serves on", "new", s.proc.pid())
			return
		}
		s.orderly = true
		u.onStop(stopRequest{now: stop.Now, passedOn: true})
		return
	}
	if !s.accepted {
		if s.told == nil {
			s.told = errors.New("it has given up by itself")
		}
		return // it will exit
	}
	if s.left || u.state == stopped || u.stopAsked {
		return
	}
	s.left, s.since = true, time.Now()
	s.mover.stop()
	s.late = time.AfterFunc(u.opt.drainTimeout+u.opt.readyTimeout, func() {
		u.post(func() {
			if s == u.next {
				u.kill(s, ErrRolledBack)
			}
		})
	})
	u.rollBack(&UpgradeError{Reason: ErrRolledBack, Pid: s.proc.pid(), Err: errors.New("it has stopped by itself")})
}

func status(state *os.ProcessState) string {
	if state == nil {
		return "unknown"
	}
	return state.String()
}
