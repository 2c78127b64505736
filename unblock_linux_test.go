package grace

import (
	"fmt"
	"net"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Another process takes O_NONBLOCK away, so that an Accept is a system call that
// blocks: shutting the gate frees it, and the flag is there again.
func TestBlockedAcceptIsFreed(t *testing.T) {
	s := newSockets(nil, 0)
	l, err := s.listen(net.ListenConfig{}, "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.sock.control(func(fd uintptr) { unix.SetNonblock(int(fd), false) })
	if err := s.openGates(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { _, err := l.Accept(); done <- err }()
	defer func() {
		if c, err := net.Dial("tcp", l.Addr().String()); err == nil { // frees what the test has not
			c.Close()
		}
		l.Close()
		wait(t, done, "the end of Accept")
	}()
	until(t, "a thread in accept(2)", func() bool {
		tasks, _ := os.ReadDir("/proc/self/task")
		for _, task := range tasks {
			b, _ := os.ReadFile("/proc/self/task/" + task.Name() + "/syscall")
			if strings.HasPrefix(string(b), fmt.Sprint(unix.SYS_ACCEPT4, " ")) {
				return true
			}
		}
		return false
	})
	s.yield(s.snapshot(), []int{0})
	until(t, "the end of the system call", func() bool { return l.gate.isQuiet() })
	l.sock.control(func(fd uintptr) {
		if flags, err := unix.FcntlInt(fd, unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK == 0 {
			t.Errorf("the socket is blocking still: flags %#x, error %v", flags, err)
		}
	})
}
