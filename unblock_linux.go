package grace

import (
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// freeAccept gets a thread out of accept(2) that no deadline reaches. O_NONBLOCK
// belongs to the open file, and so to every process that has the socket: a
// master written in Go takes it away each time that it starts a child (os.File.Fd
// does), and an Accept that begins then is a blocking system call.
//
// A signal interrupts the call, and it begins anew with the flags of now. SIGURG
// is the one that the Go runtime sends its threads all the time.
func (l *listener) freeAccept() {
	for wait := time.Millisecond; l.gate.isStuck(); wait = min(2*wait, 100*time.Millisecond) {
		l.sock.control(func(fd uintptr) { unix.SetNonblock(int(fd), true) })
		tasks, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return // no /proc: the next connection gets it out
		}
		for _, t := range tasks {
			if tid, err := strconv.Atoi(t.Name()); err == nil {
				unix.Tgkill(os.Getpid(), tid, unix.SIGURG)
			}
		}
		time.Sleep(wait)
	}
}
