package grace

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/julofinance/grace/v3/internal/control"
	"github.com/julofinance/grace/v3/internal/fd"
	"github.com/julofinance/grace/v3/internal/whole"
)

// CarryState carries state that is in memory from the old process to the new one: caches,
// counters, rate limits. save is called in the old process and writes the state to w;
// restore is called in the new one, by [Upgrader.Ready] after ReadyCheck, and reads it from
// r. It is a stream, of any size: no more than some 100 kB of it are on their way at a time,
// and a save that is faster than restore waits for that.
//
// The old process serves on meanwhile, and until the new one accepts. So save must not
// change the state, which the old process keeps if the upgrade fails, and what changes after
// save is lost. It is not with [Exclusive]: save is called after release then, and restore
// after acquire, while nothing is served.
//
// r gives io.EOF only when it has given all that save has written, and save has returned
// nil. If save returns an error, panics, or does not finish in time, or the old process
// dies, r gives an error that matches [ErrState]; so what has come until then never looks
// whole to a restore that reads up to io.EOF.
//
// If restore returns an error, or panics, Ready fails with ErrState, the new process should
// exit, and the old one serves on. So a restore that can't read what another version has
// saved, or not all of it, decides: it returns the error, or nil to go on without.
//
// Restore is not called if there is nothing to restore: in a first process, under a master,
// and if the old process is of a version without save. Either function may be nil.
//
// Both together have half of [ReadyTimeout]; with Exclusive, what acquire has left of
// [ExclusiveTimeout]. Then, and when this process is told to stop, the context of restore
// ends, and r gives an error; that of save ends when restore has returned, and if the new
// process dies. save runs once at a time. Nothing waits for one that does not heed its
// context, but the next upgrade gets no state before it has returned. The option may be
// given once. Default: nothing is carried over.
func CarryState(save func(ctx context.Context, w io.Writer) error, restore func(ctx context.Context, r io.Reader) error) Option {
	return func(o *options) error {
		if o.carries {
			return errors.New("CarryState: it was given twice; let one function write all of the state")
		}
		o.carries, o.saveState, o.restoreState = true, save, restore
		return nil
	}
}

// How it crosses: the new process makes a pair of sockets and sends one of them with
// msgState. The old one writes the stream of package whole there, and closes it; it sees
// by the end of the other one that the new process has enough, or is dead. All of it is
// done by goroutines of their own, in both processes: the one that owns the state, and
// those that read the control channel, wait for nothing.

// The old process.

// onState takes the socket of a msgState, and returns what is to be closed. If it has
// not arrived, since this process has no room for a descriptor, the new process reads the
// end of a stream that has not begun.
func (c *child) onState(fds []int) []int {
	if len(fds) != 1 || c.give == nil {
		return fds
	}
	if conn, err := fd.NewUnixConn(fds[0]); err == nil {
		go c.give(conn)
	}
	return nil
}

// stateGiver gives child.give for the new process, pid.
func (u *Upgrader) stateGiver(pid int) func(*net.UnixConn) {
	if u.opt.saveState == nil {
		return nil
	}
	return func(conn *net.UnixConn) { u.giveState(conn, pid) }
}

// giveState saves the state for the new process, pid, on conn.
func (u *Upgrader) giveState(conn *net.UnixConn, pid int) {
	begun := time.Now()
	defer conn.Close()
	w := whole.NewWriter(conn)
	ctx, cancel := context.WithTimeout(context.Background(), u.opt.readyTimeout)
	defer cancel()
	go func() {
		conn.Read(make([]byte, 1)) // the new process writes nothing: this is its end
		cancel()
	}()
	defer context.AfterFunc(ctx, func() { conn.SetWriteDeadline(time.Now()) })()
	turn := time.NewTimer(hookGrace)
	defer turn.Stop()
	err := errors.New("it has ended its goroutine")
	defer func() {
		if err == nil {
			if err = w.End(); err == nil {
				u.log.Info("grace: state was saved for the new process", "new", pid, "bytes", w.Len(), "took", time.Since(begun))
				return
			}
		} else {
			w.Fail(err.Error())
		}
		u.log.Warn("grace: state was not saved whole for the new process, which decides whether it goes on without", "new", pid, "bytes", w.Len(), "err", err)
	}()
	select {
	case u.saving <- struct{}{}:
		defer func() { <-u.saving }()
		err = u.callHook(ctx, "CarryState", func(ctx context.Context) error { return u.opt.saveState(ctx, w) })
	case <-turn.C:
		err = errors.New("save, called for an upgrade before, has still not returned")
	}
}

// The new process.

// takeState asks the old process for its state, and lets restore read it.
func (u *Upgrader) takeState(limit time.Duration) error {
	p := u.parent
	if u.opt.restoreState == nil || p == nil || !p.m.Carries {
		return nil
	}
	if p.isGone() { // as in a first process
		u.log.Warn("grace: the old process is gone, and its state with it; this process goes on without", "old", p.m.Pid)
		return nil
	}
	begun := time.Now()
	ctx, cancel := context.WithTimeout(u.ctx, limit)
	defer cancel()
	s := p.askState(ctx)
	defer s.close()
	err := u.callBounded(ctx, "CarryState", "it", limit, func(ctx context.Context) error { return u.opt.restoreState(ctx, s) }, func() {})
	switch {
	case u.ctx.Err() != nil:
		return fmt.Errorf("grace: Ready: %w", ErrStopped)
	case errors.Is(err, ErrState):
		return fmt.Errorf("grace: restore: %w", err)
	case err != nil:
		return fmt.Errorf("grace: %w: restore: %w", ErrState, err)
	}
	// What restore has left, if it is only the end: a decoder may not read that.
	read := s.r.Len()
	if s.err == nil {
		io.Copy(io.Discard, s)
	}
	if s.r.Len() > read {
		u.log.Info("grace: restore has not read all of the old process's state; this process goes on", "old", p.m.Pid, "bytes", read, "of", s.r.Len())
		return nil
	}
	if err := s.err; err != nil && err != io.EOF {
		u.log.Warn("grace: the old process's state was not read whole; this process goes on", "old", p.m.Pid, "bytes", s.r.Len(), "err", err)
		return nil
	}
	u.log.Info("grace: state restored", "old", p.m.Pid, "bytes", s.r.Len(), "took", time.Since(begun))
	return nil
}

// A stateReader is what restore reads from. err belongs to the goroutine that reads, until
// restore has returned.
type stateReader struct {
	ctx   context.Context // of restore
	p     *parent
	conn  *net.UnixConn // nil: none could be made
	r     *whole.Reader
	err   error
	close func()
}

// askState asks for the state. What goes wrong is read from what it returns.
func (p *parent) askState(ctx context.Context) *stateReader {
	s := &stateReader{ctx: ctx, p: p, r: whole.NewReader(nil), close: func() {}}
	conn, theirs, err := control.Pair()
	if err != nil {
		s.err = fmt.Errorf("%w: no connection for it can be made: %w", ErrState, err)
		return s
	}
	s.conn, s.r = conn, whole.NewReader(conn)
	over := make(chan struct{})
	late := context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Now()) })
	s.close = func() {
		late()
		close(over)
		conn.Close()
	}
	go func() {
		select {
		case <-over:
		case <-p.gone: // what it has sent is read; another process may have its end of conn: see watchLife
			conn.CloseRead()
		}
	}()
	p.ch.SendThen(control.Message{Type: msgState, FDs: []int{theirs}}, func(error) { fd.CloseAll([]int{theirs}) })
	return s
}

func (s *stateReader) Read(b []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	n, err := s.r.Read(b)
	var failure *whole.FailedError
	switch {
	case err == nil || err == io.EOF:
		s.err = err
	case errors.As(err, &failure):
		s.err = fmt.Errorf("%w: save, in the old process: %w", ErrState, failure)
	case s.ctx.Err() != nil:
		s.err = fmt.Errorf("%w: it had not come when its time was over: %w", ErrState, s.ctx.Err())
	default:
		s.err = fmt.Errorf("%w: it ends after %d bytes; the old process, pid %d, has died, or given up: %w", ErrState, s.r.Len(), s.p.m.Pid, err)
	}
	return n, s.err
}
