//go:build unix

package grace

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// A life is a process as the kernel knows it.
type life struct {
	pid    int
	parent bool   // it is this process's parent
	start  uint64 // when it was started; 0 if that can't be told

	mu    sync.Mutex
	pidfd int  // -1: none
	ended bool // it was seen to be over
}

func (l *life) over() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return true
	}
	switch {
	case l.pidfd >= 0:
		l.ended = pidfdOver(l.pidfd)
	case l.parent:
		l.ended = os.Getppid() != l.pid
	default:
		l.ended = unix.Kill(l.pid, 0) == unix.ESRCH
		if !l.ended && l.start != 0 { // a zombie, or a stranger with the same pid
			start, ok := startOf(l.pid)
			l.ended = ok && start != l.start
		}
	}
	return l.ended
}

func (l *life) await(stop <-chan struct{}) bool {
	l.mu.Lock()
	pidfd := l.pidfd
	l.mu.Unlock()
	if pidfd >= 0 {
		ended := make(chan struct{})
		go func() { awaitPidfd(pidfd); close(ended) }()
		select {
		case <-ended:
		case <-stop:
			return false
		}
	}
	return pollLife(l.over, stop)
}

// kill sends SIGKILL. Only a pidfd is sure to name the process.
func (l *life) kill() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return os.ErrProcessDone
	}
	if l.pidfd < 0 {
		return errNoPidfd
	}
	err := killPidfd(l.pidfd)
	if err == unix.ESRCH {
		return os.ErrProcessDone
	}
	return err
}

// errNoPidfd: there is none to name the process.
var errNoPidfd = errors.New("no pidfd")

// close gives up the pidfd.
func (l *life) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.pidfd >= 0 {
		unix.Close(l.pidfd)
		l.pidfd = -1
		l.ended = true // nobody asks who does not know
	}
}

// A forked is a process that this one has started. The os package waits for it; its life is proven
// besides, since that wait may fail while it lives.
type forked struct {
	life *life
	once sync.Once
	p    *os.Process
	err  error
}

func (c *forked) pid() int { return c.life.pid }

// process is the child as the os package has it. To look at it the package may
// start a process of its own, so it is looked at late.
func (c *forked) process() (*os.Process, error) {
	c.once.Do(func() { c.p, c.err = os.FindProcess(c.life.pid) })
	return c.p, c.err
}

func (c *forked) kill() error {
	err := c.life.kill()
	if err == nil || errors.Is(err, os.ErrProcessDone) {
		return err
	}
	p, err := c.process()
	if err != nil {
		return err
	}
	return p.Kill()
}

// wait returns when the process has ended. If the kernel does not say how, the
// error says why. With a pidfd no thread is held for it.
func (c *forked) wait() (*os.ProcessState, error) {
	defer c.life.close()
	if c.life.pidfd < 0 { // what else proves its end may need its status to be taken first
		if state, err := c.reap(); err == nil {
			return state, nil
		}
	}
	c.life.await(nil)
	state, err := c.reap() // else it would be a zombie
	if err != nil {
		return nil, fmt.Errorf("how it ended is not known: %w", err)
	}
	return state, nil
}

func (c *forked) reap() (*os.ProcessState, error) {
	p, err := c.process()
	if err != nil {
		return nil, err
	}
	return p.Wait()
}
