package grace

import (
	"errors"
	"os"
	"os/exec"
	"testing"
	"time"

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
			l, err := command{path: path, argv: []string{"sleep", "1000"}}.start(t.Context(), nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			c := l.(*forked)
			change(c.life)
			if over := c.life.over(); over != (name == "a stranger's pid") {
				t.Errorf("a process that lives is over: %v", over)
			}
			unix.Kill(c.pid(), unix.SIGKILL)
			dead := make(chan bool, 1)
			go func() { dead <- c.life.await(nil) }()
			receive(t, dead, "its end") // a zombie
			if _, err := c.wait(); err != nil {
				t.Errorf("wait: %v", err)
			}
			if err := c.kill(); !errors.Is(err, os.ErrProcessDone) {
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
	p, err := command{path: path, argv: []string{"sleep", "1000"}}.start(t.Context(), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	c := p.(*forked)
	if p, err := c.process(); err == nil {
		p.Release() // from here on its Wait fails
	}
	ended := make(chan error, 1)
	go func() { _, err := c.wait(); ended <- err }()
	select {
	case err := <-ended:
		t.Errorf("a process that lives has ended: %v", err)
	case <-time.After(soon):
	}
	if err := c.kill(); err != nil {
		t.Error(err)
	}
	if err := receive(t, ended, "its end"); err == nil {
		t.Error("how it ended can't be known")
	}
	unix.Wait4(c.pid(), nil, 0, nil)
}
