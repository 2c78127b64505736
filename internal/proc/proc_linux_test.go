package proc

import (
	"errors"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/testing/wait"
	"golang.org/x/sys/unix"
)

// The end of a process is seen by its pidfd, and without one, before it is reaped.
func TestLife(t *testing.T) {
	for name, change := range map[string]func(l *life){
		"pidfd":            func(*life) {},
		"no pidfd":         func(l *life) { unix.Close(l.pidfd); l.pidfd = -1; l.start, _ = startOf(l.pid) },
		"a stranger's pid": func(l *life) { unix.Close(l.pidfd); l.pidfd = -1; l.start = 1 },
	} {
		t.Run(name, func(t *testing.T) {
			path, err := exec.LookPath("sleep")
			if err != nil {
				t.Skip(err)
			}
			l, err := Program{Path: path, Argv: []string{"sleep", "1000"}}.Start(t.Context(), nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			c := l.(*forked)
			change(c.life)
			if over := c.life.Over(); over != (name == "a stranger's pid") {
				t.Errorf("a process that lives is over: %v", over)
			}
			unix.Kill(c.Pid(), unix.SIGKILL)
			dead := make(chan bool, 1)
			go func() { dead <- c.life.Await(nil) }()
			wait.For(t, dead, "its end") // a zombie
			if _, err := c.Wait(); err != nil {
				t.Errorf("wait: %v", err)
			}
			if err := c.Kill(); !errors.Is(err, os.ErrProcessDone) {
				t.Errorf("kill of a dead process: %v", err)
			}
		})
	}
}

// The program reaps all its children itself: an error of wait is not their end.
func TestWaitOfReapedChild(t *testing.T) {
	path, err := exec.LookPath("sleep")
	if err != nil {
		t.Skip(err)
	}
	p, err := Program{Path: path, Argv: []string{"sleep", "1000"}}.Start(t.Context(), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	c := p.(*forked)
	if p, err := c.process(); err == nil {
		p.Release() // from here on its Wait fails
	}
	ended := make(chan error, 1)
	go func() { _, err := c.Wait(); ended <- err }()
	select {
	case err := <-ended:
		t.Errorf("a process that lives has ended: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	if err := c.Kill(); err != nil {
		t.Error(err)
	}
	if err := wait.For(t, ended, "its end"); err == nil {
		t.Error("how it ended can't be known")
	}
	unix.Wait4(c.Pid(), nil, 0, nil)
}
