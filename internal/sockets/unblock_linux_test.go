package sockets

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/julofinance/grace/v3/internal/testing/wait"
	"golang.org/x/sys/unix"
)

// Another process takes O_NONBLOCK away, so that an Accept is a system call that
// blocks: shutting the gate frees it, and the flag is there again.
func TestBlockedAcceptIsFreed(t *testing.T) {
	s := New(nil, 0)
	l, err := s.Listen(net.ListenConfig{}, "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Sock.Control(func(fd uintptr) { unix.SetNonblock(int(fd), false) })
	if err := s.OpenGates(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { _, err := l.Accept(); done <- err }()
	defer func() {
		if c, err := net.Dial("tcp", l.Addr().String()); err == nil { // frees what the test has not
			c.Close()
		}
		l.Close()
		wait.For(t, done, "the end of Accept")
	}()
	wait.Until(t, "a thread in accept(2)", func() bool {
		tasks, _ := os.ReadDir("/proc/self/task")
		for _, task := range tasks {
			b, _ := os.ReadFile("/proc/self/task/" + task.Name() + "/syscall")
			if strings.HasPrefix(string(b), fmt.Sprint(unix.SYS_ACCEPT4, " ")) {
				return true
			}
		}
		return false
	})
	s.Yield(s.Snapshot(), []int{0})
	wait.Until(t, "the end of the system call", func() bool { return l.Gate.IsQuiet() })
	l.Sock.Control(func(fd uintptr) {
		if flags, err := unix.FcntlInt(fd, unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK == 0 {
			t.Errorf("the socket is blocking still: flags %#x, error %v", flags, err)
		}
	})
}

// Close returns, and ends a call that waits, also where that is in a system call that
// blocks.
func TestCloseOfASocketThatBlocks(t *testing.T) {
	for _, network := range []string{"tcp", "unix", "udp", "unixgram"} {
		t.Run(network, func(t *testing.T) {
			s := New(nil, 0)
			s.OpenGates()
			addr := "127.0.0.1:0"
			if strings.HasPrefix(network, "unix") {
				addr = filepath.Join(t.TempDir(), "s")
			}
			var c io.Closer
			var waits func() error
			if network == "tcp" || network == "unix" {
				l, err := s.Listen(net.ListenConfig{}, network, addr)
				if err != nil {
					t.Fatal(err)
				}
				c, waits = l, func() error { _, err := l.Accept(); return err }
			} else {
				p, err := s.ListenPacket(net.ListenConfig{}, network, addr)
				if err != nil {
					t.Fatal(err)
				}
				c, waits = p, func() error { _, _, err := p.ReadFrom(make([]byte, 1)); return err }
			}
			s.all[0].Control(func(fd uintptr) { unix.SetNonblock(int(fd), false) })
			done, closed := make(chan error, 1), make(chan error, 1)
			go func() { done <- waits() }()
			wait.Until(t, "a system call that blocks", func() bool { return wait.InSyscall("sockets.TestCloseOfASocketThatBlocks") })
			go func() { closed <- c.Close() }()
			if err := wait.For(t, closed, "Close"); err != nil {
				t.Errorf("Close returned %v", err)
			}
			if err := wait.For(t, done, "the call that waits"); !errors.Is(err, net.ErrClosed) {
				t.Errorf("the call that waits gets %v, want net.ErrClosed", err)
			}
		})
	}
}
