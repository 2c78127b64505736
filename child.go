package grace

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/julofinance/grace/v3/internal/control"
	"github.com/julofinance/grace/v3/internal/fd"
	"github.com/julofinance/grace/v3/internal/hint"
	"github.com/julofinance/grace/v3/internal/manifest"
	"github.com/julofinance/grace/v3/internal/proc"
	"github.com/julofinance/grace/v3/internal/sockets"
)

// A child is the new process, as the old one sees it: the process, the channel
// and the pipe to it, and what it was given. Its goroutines turn what they see
// into events; the machine decides what follows from those.
type child struct {
	id       int // names it in events
	proc     proc.Process
	ch       *control.Channel
	pipe     *os.File          // read end of the readiness pipe
	handed   []*sockets.Socket // by their index in the manifest
	mover    *sockets.Mover
	claims   atomic.Pointer[manifest.Claims] // what it has claimed last; nil: nothing yet
	probes   atomic.Bool                     // it takes connections for a health check
	give     func(*net.UnixConn)             // saves the state for it; nil: there is none to be saved
	launched time.Time

	ctx  context.Context // ends when it is dead, or this process begins to stop
	over context.CancelFunc
}

// A childPlan is what a child is started with.
type childPlan struct {
	id       int
	sockets  *sockets.Set
	pid      *pidFile // nil without one
	leashes  *leashes
	manifest func([]*sockets.Socket) *manifest.Manifest
	grace    time.Duration // the idle grace
	start    func(ready, control int, files []int) (proc.Process, error)
}

// startChild gives the child everything that it gets, and starts it. It may wait
// for a disk.
func startChild(ctx context.Context, plan childPlan) (c *child, err error) {
	conn, theirs, err := control.Pair()
	if err != nil {
		return nil, err
	}
	defer fd.CloseAll([]int{theirs})
	ch := control.New(conn)
	pipe, theirPipe, err := os.Pipe()
	if err != nil {
		ch.Close()
		return nil, err
	}
	defer theirPipe.Close()
	c = &child{id: plan.id, ch: ch, pipe: pipe}
	defer func() {
		if err != nil {
			pipe.Close()
			ch.Close()
		}
	}()
	var lock []int // of the PID file, or none
	if plan.pid != nil {
		if lock, err = plan.pid.lend(); err != nil {
			if isShort(err) { // such an error has its own advice
				return nil, err
			}
			return nil, hint.New(err, "see to it that this process can use the PID file and the lock beside it, as the error says, and send the signal again")
		}
		defer fd.CloseAll(lock)
	}
	leashes, ends, err := plan.leashes.lend()
	if err != nil {
		return nil, err
	}
	defer fd.CloseAll(ends)
	raw, err := theirPipe.SyscallConn()
	if err != nil {
		return nil, err
	}
	cerr := raw.Control(func(ready uintptr) {
		err = sockets.WithFDs(plan.sockets.ToHandOver(), func(socks []*sockets.Socket, fds []int) error {
			m := plan.manifest(socks)
			m.Sockets = append(m.Sockets, leashes...)
			for range lock {
				m.Sockets = append(m.Sockets, manifest.Entry{Kind: manifest.PIDLock})
			}
			if err := ch.Prewrite(control.NewMessage(msgManifest, m)); err != nil {
				return fmt.Errorf("control channel: %w", err)
			}
			c.handed = socks
			c.mover = sockets.NewMover(ch, socks)
			c.mover.Grace = plan.grace
			ch.Allow(len(socks))
			told := context.AfterFunc(ctx, func() { sayLeft(ch) })
			defer told()
			c.proc, err = plan.start(int(ready), theirs, slices.Concat(fds, ends, lock))
			return err
		})
	})
	if err = errors.Join(cerr, err); err != nil {
		return nil, err
	}
	return c, nil
}

// watch posts what the child does. Nothing that is posted keeps it from reading on.
func (c *child) watch(post func(event)) {
	c.mover.Stuck = func(err error) {
		if !errors.Is(err, fd.ErrBrokenPipe) && !errors.Is(err, net.ErrClosed) { // else it is dead
			post(evStuck{c.id, err})
		}
	}
	lineRead := make(chan struct{})
	go func() {
		defer close(lineRead)
		line, err := readLine(c.pipe)
		post(evLine{c.id, line, err})
	}()
	channelRead := make(chan struct{})
	c.ch.Run(func(m control.Message) {
		defer func() { fd.CloseAll(m.FDs) }()
		if m.Type == msgState {
			m.FDs = c.onState(m.FDs)
			return
		}
		if e := c.event(m); e != nil {
			post(e)
		}
	}, func(err error) {
		c.mover.Stop()
		close(channelRead)
		if !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, net.ErrClosed) { // else it was reaped: see below
			post(evDeaf{c.id, err, isOurs(err)})
		}
	})
	go func() {
		state, err := c.proc.Wait()
		// Grandchildren may hold the pipe and the channel open. What the dead
		// process itself has written is read, and the grandchildren are not waited
		// for.
		end := time.Now().Add(500 * time.Millisecond)
		c.pipe.SetReadDeadline(end)
		c.ch.Socket().SetReadDeadline(end)
		<-lineRead
		<-channelRead
		c.pipe.Close()
		post(evExit{c.id, &UpgradeError{Pid: c.proc.Pid(), State: state, Err: err}, proc.WasKilled(state)})
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

// event gives what the message m says; nil: it is not for the machine.
func (c *child) event(m control.Message) event {
	var claimed manifest.Claims
	switch m.Type {
	case sockets.MsgTook:
		if took, refused, err := sockets.DecodeIDs(m.Payload); err == nil {
			c.mover.OnTook(took, refused)
		}
	case msgTakes:
		if m.Decode(&claimed) == nil {
			c.mover.Learn(claimed)
			return evTakes{c.id}
		}
	case msgClaims:
		if err := m.Decode(&claimed); err != nil {
			return evClaims{id: c.id, err: err}
		}
		c.learn(&claimed)
		c.probes.Store(claimed.Probes)
		return evClaims{id: c.id, pongs: claimed.Pongs, keeps: claimed.Keeps, exclusive: claimed.Exclusive}
	case msgAccepting:
		if len(m.Payload) > 0 && m.Decode(&claimed) == nil && c.claims.Load() != nil { // they have changed since
			c.learn(&claimed)
		}
		return evAccepting{c.id, time.Now()}
	case msgPong:
		return evPong{c.id}
	case msgWatched:
		return watchedOf(m)
	case msgHanded:
		return evHandedOver{c.id, len(m.Payload) > 0}
	case msgStop:
		var stop stopMessage
		if m.Decode(&stop) == nil {
			return evChildStop{c.id, time.Now(), stop.Now, stop.Leave, stop.Early}
		}
	case msgFailed:
		return evFailed{c.id, errors.New(strings.TrimPrefix(string(m.Payload), "grace: "))}
	}
	return nil
}

func (c *child) learn(claimed *manifest.Claims) {
	c.claims.Store(claimed)
	c.mover.Learn(*claimed)
}

// ping asks the child whether it is well. failed is called if the kernel does not
// take the question within limit, unless the reason is that the child does not
// read.
func (c *child) ping(limit time.Duration, failed func(error)) {
	c.ch.SendWithin(limit, control.NewMessage(msgPing, nil), func(err error) {
		if err != nil && isOurs(err) && !errors.Is(err, control.ErrNotRead) && !errors.Is(err, control.ErrCutShort) {
			failed(err)
		}
	})
}

// isOurs reports whether err, of the control channel, is this process's trouble,
// and not the end of the other process, or something that it has sent.
func isOurs(err error) bool {
	for _, theirs := range []error{io.EOF, io.ErrUnexpectedEOF, ErrProtocol, errConnReset, fd.ErrBrokenPipe, net.ErrClosed} {
		if errors.Is(err, theirs) {
			return false
		}
	}
	return true
}

// abandon ends a child that is not used: it waits for a go that never comes.
func (c *child) abandon() {
	c.proc.Kill()
	c.ch.Close()
	c.pipe.Close()
	c.proc.Wait()
}
