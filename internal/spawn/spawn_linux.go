//go:build linux && (amd64 || arm64)

package spawn

import (
	"runtime"
	"unsafe"
)

// Supported reports whether Start can do anything here.
const Supported = true

// A Program is what the new process runs, and with what.
type Program struct {
	Path string
	Argv []string
	Env  []string
	Dir  string // to change to; empty: the directory of this process
	// Files are the descriptors that it is given. All others, but 0, 1 and 2 and
	// those of Keep, are closed.
	Files []File
	// Keep are descriptors that it is given under their own numbers, as they are.
	Keep []int
	// Result is the write end of a pipe that closes on exec. If the program can't
	// be executed a [Failure] is written into it. Its number must be above all
	// numbers of Files and Keep.
	Result int
	// Sibling makes it a child of this process's parent.
	Sibling bool
	// copied: it has a copy of the memory, as after fork(2); for a test under an
	// emulator, which knows no more than that.
	copied bool
}

// A File is the descriptor From of this process, which becomes To of the new one.
type File struct{ From, To int }

// What has failed.
const (
	Dir uint64 = 1 + iota
	Files
	Exec
)

// A Failure is what comes through Result if the program can't be executed.
type Failure struct {
	Errno uint64
	What  uint64
}

// args is known to the assembly, as is step.
type args struct {
	flags  uintptr
	stack  uintptr
	pidfd  *int32
	steps  *step
	result uintptr
	all    uint64 // every signal
	mask   uint64 // the thread's
	//lint:ignore U1000 the assembly writes it, and writes it out
	failed Failure
}

// A step is a system call of the new process.
type step struct {
	nr   uintptr
	args [6]uintptr
	what uint64 // that has failed if this fails; 0: it may fail
}

func clone(a *args) (ret uintptr)
func syscall4(nr, a, b, c, d uintptr) (ret uintptr)

const (
	cloneVM       = 0x100
	clonePidfd    = 0x1000
	cloneParent   = 0x8000
	sigchld       = 17
	signals       = 64
	sigIgnore     = 1
	setFD         = 2       // F_SETFD
	closeOnExec   = 0x80000 // O_CLOEXEC
	sysCloseRange = 436
	rangeOnExec   = 4 // CLOSE_RANGE_CLOEXEC
	noFile        = 7 // RLIMIT_NOFILE
	setMask       = 2 // SIG_SETMASK
)

// Start starts p and returns before it is executed: p must stay as it is, and
// reachable, until Result was closed by the new process. The pidfd, which closes
// on exec, is -1 if the kernel has none. errno is that of clone(2).
//
// The caller holds syscall.ForkLock.
func (p *Program) Start() (running *Running, errno uintptr) {
	r := &Running{Pidfd: -1}
	r.args = args{flags: sigchld, result: uintptr(p.Result), all: ^uint64(0), pidfd: &r.Pidfd}
	if !p.copied {
		r.args.flags |= cloneVM | clonePidfd
	}
	if p.Sibling {
		r.args.flags |= cloneParent
	}
	r.args.stack = uintptr(unsafe.Pointer(&r.stack[len(r.stack)-1])) &^ 15
	r.write(p)
	r.args.steps = &r.steps[0]
	ret := clone(&r.args)
	if ret > ^uintptr(4095) {
		return nil, -ret
	}
	r.Pid = int(ret)
	return r, 0
}

// Running is a process that was started, and what it may still be reading.
type Running struct {
	Pid    int
	Pidfd  int32
	args   args
	steps  []step
	keep   []any      // what the steps point to
	stack  [64]uint64 // that the child has, and does not use
	nofile limit
	dfl    [4]uintptr // a struct sigaction: the default action
}

type limit struct{ cur, max uint64 }

// Done says that the new process does not read this memory any more.
func (r *Running) Done() { runtime.KeepAlive(r) }
