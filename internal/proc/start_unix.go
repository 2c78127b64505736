//go:build unix

package proc

import (
	"cmp"
	"context"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// A Given descriptor has the number From here, and To in the new process.
type Given struct{ From, To int }

// Start starts c with the given descriptors, and those of kept under their own numbers. It
// returns when the program is executed, or could not be. The error is a *DirError if the
// directory is at fault, and a *StuckError if ctx ended first.
func (c Program) Start(ctx context.Context, files []Given, kept []int) (Process, error) {
	if canSpawn {
		return c.spawn(ctx, files, kept)
	}
	return c.fork(ctx, files, kept)
}

// fork is what the standard library offers. Plain numbers and
// syscall.StartProcess are used because os.File.Fd may set a socket to blocking,
// for this process too.
func (c Program) fork(_ context.Context, files []Given, kept []int) (Process, error) {
	list := []uintptr{standardStream(0), standardStream(1), standardStream(2)}
	put := func(from, to int) {
		for len(list) <= to {
			list = append(list, ^uintptr(0)) // none
		}
		list[to] = uintptr(from)
	}
	for _, f := range files {
		put(f.From, f.To)
	}
	for _, fd := range kept {
		put(fd, fd)
	}
	if c.Sibling {
		return startSibling(c, list)
	}
	if c.Dir != "" && !c.DirAsked { // which of the two can't be told by the error
		if err := unix.Access(c.Dir, unix.X_OK); err != nil {
			return nil, &DirError{c.Dir, err}
		}
	}
	l, err := startForked(c.Path, c.Argv, &syscall.ProcAttr{Dir: c.Dir, Env: c.Env, Files: list})
	if err != nil {
		return nil, c.failed(err)
	}
	return c.process(l), nil
}

// Process is c, started.
func (c Program) process(l *life) Process {
	if l.pidfd < 0 {
		l.start, _ = startOf(l.pid)
	}
	if c.Sibling {
		return newSibling(l)
	}
	return &forked{life: l}
}

// failed is the error if c could not be executed.
func (c Program) failed(err error) error {
	return fmt.Errorf("start %s in %s: %w", c.Path, cmp.Or(c.Dir, "this process's directory"), err)
}

// standardStream is n if that is still what the process was started with: a descriptor that
// Go has opened there later is close-on-exec.
func standardStream(n uintptr) uintptr {
	flags, err := unix.FcntlInt(n, unix.F_GETFD, 0)
	if err != nil || flags&unix.FD_CLOEXEC != 0 {
		return ^uintptr(0)
	}
	return n
}
