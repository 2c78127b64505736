package sdnotify

import (
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"testing"

	"github.com/julofinance/grace/v3/internal/testing/wait"
	"golang.org/x/sys/unix"
)

// A service manager that does not read, and whose socket is full, holds up no caller.
func TestServiceManagerThatDoesNotRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	// A sender may be full before the queue is: fill it until another one finds it so.
	for sent := 1; sent > 0; {
		from, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(from)
		for sent = 0; err == nil; sent++ {
			err = unix.Sendto(from, []byte("x"), unix.MSG_DONTWAIT, &unix.SockaddrUnix{Name: path})
		}
		sent-- // the last one has failed
		if !errors.Is(err, unix.EAGAIN) {
			t.Fatalf("the queue is not full: error %v", err)
		}
	}
	n := New(&Manager{Socket: path}, slog.New(slog.DiscardHandler), true)
	told := make(chan struct{})
	go func() {
		defer close(told)
		for range 100 { // each may be written for seconds
			n.Ready("serves")
		}
		n.Close()
	}()
	wait.For(t, told, "100 notifications")
}
