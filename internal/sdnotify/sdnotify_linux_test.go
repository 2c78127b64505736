package sdnotify

import (
	"log/slog"
	"net"
	"path/filepath"
	"testing"

	"github.com/julofinance/grace/v3/internal/testing/fdtest"
	"github.com/julofinance/grace/v3/internal/testing/wait"
)

// A service manager that does not read, and whose socket is full, holds up no caller.
func TestServiceManagerThatDoesNotRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	fdtest.FillUnixgram(t, path)
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
