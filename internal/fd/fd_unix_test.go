//go:build unix

package fd

import (
	"net"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// dupOf is a duplicate of c's descriptor, as a process is given one.
func dupOf(t *testing.T, c net.Listener) int {
	t.Helper()
	raw, err := c.(Listener).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	n := -1
	raw.Control(func(from uintptr) { n, err = unix.FcntlInt(from, unix.F_DUPFD_CLOEXEC, 0) })
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func isBlocking(t *testing.T, n int) bool {
	t.Helper()
	flags, err := unix.FcntlInt(uintptr(n), unix.F_GETFL, 0)
	if err != nil {
		t.Fatal(err)
	}
	return flags&unix.O_NONBLOCK == 0
}

// A listener made of a descriptor leaves the open file non-blocking, takes connections, and
// keeps no other descriptor of the socket open.
func TestNewListener(t *testing.T) {
	old, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	n := dupOf(t, old)
	kept := dupOf(t, old)
	defer unix.Close(kept)
	l, err := NewListener(n)
	if err != nil {
		t.Fatal(err)
	}
	if isBlocking(t, kept) {
		t.Error("the socket is blocking for every process that has it")
	}
	if _, err := unix.FcntlInt(uintptr(n), unix.F_GETFD, 0); err == nil {
		t.Errorf("descriptor %d is still open", n)
	}
	old.Close()
	unix.Close(kept)
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if other, err := l.Accept(); err != nil {
		t.Error(err)
	} else {
		other.Close()
	}
	l.Close()
	if c, err := net.Dial("tcp", l.Addr().String()); err == nil {
		c.Close()
		t.Error("something keeps the socket open")
	}
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if n, err = Dup(f); err != nil {
		t.Fatal(err)
	}
	if l, err := NewListener(n); err == nil {
		l.Close()
		t.Error("a file is a listener")
	}
	if _, err := unix.FcntlInt(uintptr(n), unix.F_GETFD, 0); err == nil {
		t.Error("the descriptor of what is no listener is still open")
	}
}

// What poll(2) reports of both ends of a socket pair.
func TestPoll(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	if IsReadable(pair[0]) || IsHungUp(pair[0]) || Poll(pair[0], ShutDown) != 0 {
		t.Errorf("nothing has happened, and poll gives %#x", Poll(pair[0], unix.POLLIN|ShutDown))
	}
	unix.Write(pair[1], []byte("x"))
	if !IsReadable(pair[0]) || IsHungUp(pair[0]) {
		t.Errorf("a byte was written, and poll gives %#x", Poll(pair[0], unix.POLLIN|ShutDown))
	}
	unix.Close(pair[1])
	if !IsReadable(pair[0]) || !IsHungUp(pair[0]) || Poll(pair[0], ShutDown)&ShutDown == 0 {
		t.Errorf("the other end is closed, and poll gives %#x", Poll(pair[0], unix.POLLIN|ShutDown))
	}
	c, err := NewUnixConn(pair[0])
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if n, err := Of(c); err != nil || !IsReadable(n) {
		t.Errorf("Of gives descriptor %d, error %v", n, err)
	}
}
