package grace

import (
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A service manager that does not read, and whose socket is full, is waited for by
// nobody who tells it something.
func TestServiceManagerThatDoesNotRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	for err == nil {
		err = unix.Sendto(fd, []byte("x"), unix.MSG_DONTWAIT, &unix.SockaddrUnix{Name: path})
	}
	if !errors.Is(err, unix.EAGAIN) {
		t.Fatalf("the socket is not full: %v", err)
	}
	n := newNotifier(&serviceManager{Socket: path}, slog.New(slog.DiscardHandler), true)
	told := make(chan struct{})
	go func() {
		defer close(told)
		for range 100 { // each may be written for seconds
			n.ready("serves")
		}
		n.close()
	}()
	receive(t, told, "who tells it")
}
