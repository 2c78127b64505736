//go:build unix

// Package fdtest has what tests of several packages do with descriptors.
package fdtest

import (
	"errors"
	"net"
	"os"
	"sync"
	"testing"

	"github.com/julofinance/grace/v3/internal/fd"
	"golang.org/x/sys/unix"
)

// Pipes gives n pipes; what is written to the i-th descriptor of w can be read from
// the i-th file of r. The test's end closes r, and the test itself w.
func Pipes(t testing.TB, n int) (r []*os.File, w []int) {
	t.Helper()
	for range n {
		a, b, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { a.Close() })
		r = append(r, a)
		n, err := fd.Dup(b)
		b.Close()
		if err != nil {
			t.Fatal(err)
		}
		w = append(w, n)
	}
	return r, w
}

// FillUnixgram sends to the unixgram socket at path until its queue takes no more from
// anybody. A sender may be full before the queue is: so it fills until another sender
// finds it full. The test's end closes the senders, which keep what they have sent in
// the queue.
func FillUnixgram(t testing.TB, path string) {
	t.Helper()
	for sent := 1; sent > 0; {
		from, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
		if err != nil {
			t.Fatal(err)
		}
		unix.CloseOnExec(from)
		t.Cleanup(func() { unix.Close(from) })
		if err := unix.SetNonblock(from, true); err != nil {
			t.Fatal(err)
		}
		for sent = 0; err == nil; sent++ {
			err = unix.Sendto(from, []byte("x"), 0, &unix.SockaddrUnix{Name: path})
		}
		sent-- // the last one has failed
		if !errors.Is(err, unix.EAGAIN) {
			t.Fatalf("the queue is not full: error %v", err)
		}
	}
}

var inOrder sync.Mutex // held while InOrder looks for numbers and takes them

// InOrder gives copies of fds with consecutive numbers.
func InOrder(fds []int) (base int, err error) {
	inOrder.Lock()
	defer inOrder.Unlock()
	free := 0
	for base = 300; free < len(fds); {
		if _, err := unix.FcntlInt(uintptr(base+free), unix.F_GETFD, 0); err == nil {
			base, free = base+free+1, 0
			continue
		}
		free++
	}
	for i, fd := range fds {
		for {
			if err = unix.Dup2(fd, base+i); err != unix.EINTR && err != unix.EBUSY {
				break
			}
		}
		if err != nil {
			return 0, err
		}
		unix.CloseOnExec(base + i)
	}
	return base, nil
}

// Listens reports whether this process has a socket that listens at addr, a TCP
// address. That a connection is refused there would not show it: once the port is free
// the kernel gives it to any process.
func Listens(t testing.TB, addr net.Addr) bool {
	t.Helper()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	want := addr.(*net.TCPAddr).Port
	for n := range int(min(limit.Cur, 1<<16)) {
		at, err := unix.Getsockname(n)
		if err != nil {
			continue // not a socket
		}
		port := -1
		switch at := at.(type) {
		case *unix.SockaddrInet4:
			port = at.Port
		case *unix.SockaddrInet6:
			port = at.Port
		}
		if _, err := unix.Getpeername(n); port == want && err != nil {
			return true
		}
	}
	return false
}
