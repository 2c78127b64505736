package sockets

import (
	"errors"
	"io/fs"
	"os"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/julofinance/grace/v3/internal/gate"
	"golang.org/x/sys/unix"
)

// No deadline, and no Close, reaches a thread in a system call that blocks. Sockets
// of package net do not block, but O_NONBLOCK belongs to the open file, and so to
// every process that has the socket, and to every copy of its descriptor (open(2),
// fcntl(2)): a master written in Go takes it away each time that it starts a child,
// and so does a program that calls FD on what File has given. An Accept or a Read
// that begins then is a blocking system call.
//
// So the flag is set again, and then a signal interrupts the call, which begins
// anew with the present flags (signal(7), SA_RESTART). SIGURG is the one that the
// Go runtime sends its threads all the time.

// unblock frees a thread that is in a system call on the socket; false if it
// never can.
func (sock *Socket) unblock() bool {
	sock.nonblock()
	return interruptThreads()
}

// nonblock makes the socket non-blocking: no system call that begins from now on
// blocks.
func (sock *Socket) nonblock() {
	sock.Control(func(fd uintptr) { unix.SetNonblock(int(fd), true) })
}

// unblock lets a Read of the connection wait for its deadlines. It does not harm
// the connection. t.mu is held.
func (t *Track) unblock() {
	blocks := false
	t.control(func(fd uintptr) {
		flags, err := unix.FcntlInt(fd, unix.F_GETFL, 0)
		if blocks = err == nil && flags&unix.O_NONBLOCK == 0; blocks {
			unix.SetNonblock(int(fd), true)
		}
	})
	if !blocks {
		return
	}
	if interrupting.CompareAndSwap(false, true) { // one signal to each thread serves many connections
		time.AfterFunc(gate.FreeAfter, func() {
			interrupting.Store(false)
			interruptThreads()
		})
	}
}

var interrupting atomic.Bool

// interruptThreads returns false where there is no /proc.
func interruptThreads() bool {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return !errors.Is(err, fs.ErrNotExist)
	}
	for _, t := range tasks {
		if tid, err := strconv.Atoi(t.Name()); err == nil {
			unix.Tgkill(os.Getpid(), tid, unix.SIGURG)
		}
	}
	return true
}
