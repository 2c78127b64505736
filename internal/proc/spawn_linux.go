//go:build linux && (amd64 || arm64)

package proc

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/julofinance/grace/v3/internal/spawn"
	"golang.org/x/sys/unix"
)

const canSpawn = true

// spawn starts c without a vfork, so that an execve that takes its time holds up
// nothing here. If ctx ends first the new process is killed, and the error is a
// StuckError.
func (c Program) spawn(ctx context.Context, files []Given, kept []int) (Process, error) {
	for _, s := range slices.Concat([]string{c.Path, c.Dir}, c.Argv, c.Env) {
		if strings.IndexByte(s, 0) >= 0 {
			return nil, fmt.Errorf("start %s: %q has a zero byte", c.Path, s)
		}
	}
	result, theirs, err := resultPipe(files, kept)
	if err != nil {
		return nil, err
	}
	defer result.Close()
	p := &spawn.Program{Path: c.Path, Argv: c.Argv, Env: c.Env, Dir: c.Dir, Keep: kept, Result: theirs, Sibling: c.Sibling}
	for _, f := range files {
		p.Files = append(p.Files, spawn.File{From: f.From, To: f.To})
	}
	syscall.ForkLock.Lock()
	running, errno := p.Start()
	syscall.ForkLock.Unlock()
	unix.Close(theirs)
	switch err := syscall.Errno(errno); err {
	case 0:
	case unix.ENOSYS, unix.EINVAL, unix.EPERM: // a sandbox that refuses this clone(2)
		return c.fork(ctx, files, kept)
	default:
		return nil, fmt.Errorf("start %s: clone: %w", c.Path, err)
	}
	s := c.process(&life{pid: running.Pid, pidfd: int(running.Pidfd)})
	stop := context.AfterFunc(ctx, func() { result.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	var b [16]byte
	_, err = io.ReadFull(result, b[:])
	if errors.Is(err, io.EOF) { // closed by exec
		running.Done()
		return s, nil
	}
	if err != nil {
		s.Kill()
		go func() { // reaps it, and keeps what it reads until it is gone
			s.Wait()
			running.Done()
		}()
		return nil, &StuckError{Path: c.Path, Doing: "to be executed", Pid: running.Pid}
	}
	s.Wait()
	running.Done()
	err = syscall.Errno(binary.NativeEndian.Uint64(b[:]))
	switch binary.NativeEndian.Uint64(b[8:]) {
	case spawn.Dir:
		return nil, &DirError{c.Dir, err}
	case spawn.Files:
		return nil, fmt.Errorf("start %s: pass the descriptors on: %w", c.Path, err)
	}
	return nil, c.failed(err)
}

// resultPipe makes the pipe for spawn.Program.Result.
func resultPipe(files []Given, kept []int) (ours *os.File, theirs int, err error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, -1, os.NewSyscallError("pipe2", err)
	}
	top := 2
	for _, f := range files {
		top = max(top, f.From, f.To)
	}
	for _, fd := range kept {
		top = max(top, fd)
	}
	theirs, err = unix.FcntlInt(uintptr(p[1]), unix.F_DUPFD_CLOEXEC, top+1)
	unix.Close(p[1])
	if err != nil {
		unix.Close(p[0])
		return nil, -1, fmt.Errorf("a descriptor above %d: %w", top, err)
	}
	return os.NewFile(uintptr(p[0]), "result of exec"), theirs, nil
}
