//go:build unix

package proc

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// A life is a process as the kernel knows it.
//
// mu guards pidfd and ended.
type life struct {
	pid    int
	parent bool   // it is this process's parent
	start  uint64 // when it was started; 0 if that can't be told

	mu    sync.Mutex
	pidfd int  // -1 if there is none
	ended bool // its end is proven
}

func (l *life) Over() bool {
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
		if !l.ended && l.start != 0 { // a zombie, or another process with the same pid
			start, ok := startOf(l.pid)
			l.ended = ok && start != l.start
		}
	}
	return l.ended
}

func (l *life) Await(stop <-chan struct{}) bool {
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
	return pollLife(l.Over, stop)
}

// Kill sends SIGKILL. Only a pidfd is sure to name the process.
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

// Close gives up the pidfd.
func (l *life) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.pidfd >= 0 {
		unix.Close(l.pidfd)
		l.pidfd = -1
		l.ended = true // the caller knows
	}
}

// A forked is a child of this process. Package os waits for it; its end is proven besides,
// since that wait may fail while the child lives.
type forked struct {
	life *life
	once sync.Once
	p    *os.Process
	err  error
}

func (c *forked) Pid() int { return c.life.pid }

// process is the child as package os has it. The package may start a process of its own to
// look for pidfds (checkPidfd in os/pidfd_linux.go), so it is asked late.
func (c *forked) process() (*os.Process, error) {
	c.once.Do(func() { c.p, c.err = os.FindProcess(c.life.pid) })
	return c.p, c.err
}

func (c *forked) Kill() error {
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

// Wait returns when the process has ended. If the kernel does not say how, the
// error says why. With a pidfd no thread is held for it.
func (c *forked) Wait() (*os.ProcessState, error) {
	defer c.life.Close()
	if c.life.pidfd < 0 { // what else proves its end may need its status to be taken first
		if state, err := c.reap(); err == nil {
			return state, nil
		}
	}
	c.life.Await(nil)
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
