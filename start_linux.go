//go:build linux && (amd64 || arm64)

package grace

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
// stuckError.
func (c command) spawn(ctx context.Context, files []given, kept []int) (process, error) {
	for _, s := range slices.Concat([]string{c.path, c.dir}, c.argv, c.env) {
		if strings.IndexByte(s, 0) >= 0 {
			return nil, fmt.Errorf("start %s: %q has a zero byte", c.path, s)
		}
	}
	result, theirs, err := resultPipe(files, kept)
	if err != nil {
		return nil, err
	}
	defer result.Close()
	p := &spawn.Program{Path: c.path, Argv: c.argv, Env: c.env, Dir: c.dir, Keep: kept, Result: theirs, Sibling: c.sibling}
	for _, f := range files {
		p.Files = append(p.Files, spawn.File{From: f.from, To: f.to})
	}
	syscall.ForkLock.Lock()
	running, errno := p.Start()
	syscall.ForkLock.Unlock()
	unix.Close(theirs)
	switch err := syscall.Errno(errno); err {
	case 0:
	case unix.ENOSYS, unix.EINVAL, unix.EPERM: // a sandbox that knows no such clone(2)
		return c.fork(ctx, files, kept)
	default:
		return nil, fmt.Errorf("start %s: clone: %w", c.path, err)
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
		s.kill()
		go func() { // reaps it, and keeps what it reads until it is gone
			s.wait()
			running.Done()
		}()
		return nil, &stuckError{path: c.path, doing: "to be executed", pid: running.Pid}
	}
	s.wait()
	running.Done()
	err = syscall.Errno(binary.NativeEndian.Uint64(b[:]))
	switch binary.NativeEndian.Uint64(b[8:]) {
	case spawn.Dir:
		return nil, &dirError{c.dir, err}
	case spawn.Files:
		return nil, fmt.Errorf("start %s: pass the descriptors on: %w", c.path, err)
	}
	return nil, c.failed(err)
}

// resultPipe makes the pipe for spawn.Program.Result.
func resultPipe(files []given, kept []int) (ours *os.File, theirs int, err error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, -1, os.NewSyscallError("pipe2", err)
	}
	top := 2
	for _, f := range files {
		top = max(top, f.from, f.to)
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
