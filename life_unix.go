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
	if pidfd >= 0 && stop == nil {
		awaitPidfd(pidfd)
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

// A child is a started process. The os package waits for it; its life is proven
// besides, since that wait may fail while it lives.
type child struct {
	p    *os.Process
	life *life
}

func (c *child) pid() int { return c.life.pid }

func (c *child) kill() error {
	err := c.life.kill()
	if err == nil || errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return c.p.Kill()
}

// wait returns when the process has ended. If the kernel does not say how, the
// error says why.
func (c *child) wait() (*os.ProcessState, error) {
	defer c.life.close()
	state, err := c.p.Wait()
	if err == nil {
		return state, nil
	}
	c.life.await(nil)
	if state, again := c.p.Wait(); again == nil { // else it would be a zombie
		return state, nil
	}
	return nil, fmt.Errorf("how it ended is not known: %w", err)
}
