//go:build linux

package integration_test

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/julofinance/grace/v3/internal/proctest"
)

// A flagWatch reads the flags of sockets in all processes, again and again.
type flagWatch struct {
	s       *server
	sockets map[string]bool // by target: socket:[N]
	stop    chan struct{}
	wg      sync.WaitGroup

	reads    map[int]int // by pid
	blocking []string
}

// watchFlags watches the listening sockets, which are all that a first generation has
// while no client is connected.
func (s *server) watchFlags() *flagWatch {
	s.t.Helper()
	w := &flagWatch{s: s, sockets: map[string]bool{}, stop: make(chan struct{}), reads: map[int]int{}}
	fds, err := proctest.FDs(s.Pid())
	if err != nil {
		s.t.Fatal(err)
	}
	for _, target := range fds {
		if strings.HasPrefix(target, "socket:") {
			w.sockets[target] = true
		}
	}
	w.wg.Go(func() {
		for {
			select {
			case <-w.stop:
				return
			default:
				w.look(s.generations())
			}
		}
	})
	return w
}

func (w *flagWatch) look(pids []int) {
	for _, pid := range pids {
		fds, err := proctest.FDs(pid)
		if err != nil {
			continue // it is gone
		}
		for fd, target := range fds {
			if !w.sockets[target] {
				continue
			}
			flags, ok := fileFlags(pid, fd, target)
			if !ok {
				continue
			}
			w.reads[pid]++
			if flags&syscall.O_NONBLOCK == 0 {
				w.blocking = append(w.blocking, fmt.Sprintf("descriptor %d of process %d", fd, pid))
			}
		}
	}
}

func (w *flagWatch) end() {
	close(w.stop)
	w.wg.Wait()
}

// fileFlags reads the flags of an open file from /proc; false if it is closed,
// and its number maybe another file's.
func fileFlags(pid, fd int, target string) (uint64, bool) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%d", pid, fd))
	if err != nil {
		return 0, false
	}
	if now, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", pid, fd)); err != nil || now != target {
		return 0, false
	}
	_, rest, ok := strings.Cut(string(b), "flags:")
	if !ok {
		return 0, false
	}
	line, _, _ := strings.Cut(rest, "\n")
	flags, err := strconv.ParseUint(strings.TrimSpace(line), 8, 64)
	return flags, err == nil
}

// TestStaysNonBlocking: O_NONBLOCK belongs to the open file, which both processes
// share; the one that clears it stops the other one's Accept from being woken. It is
// looked at all the time, and at each step of a hand-over.
func TestStaysNonBlocking(t *testing.T) {
	s := startServer(t, "-probation", "0", "-http", "tcp6=[::1]:0",
		"-raw", "unix="+t.TempDir()+"/s", "-packet", "udp=127.0.0.1:0", "-packet", "unixgram="+t.TempDir()+"/g")
	w := s.watchFlags()
	if len(w.sockets) != 5 {
		t.Errorf("the first generation has %d sockets, want 5", len(w.sockets))
	}
	for _, step := range []string{"start", "manifest", "listen", "check"} {
		s.misbehave("pause@" + step)
		old := s.signalFile(syscall.SIGUSR2)
		new := atoi(t, s.WaitLine(`^paused at \S+ pid=(\d+)`)[1])
		for _, pid := range []int{old, new} {
			mustBeNonBlocking(t, pid, w.sockets)
		}
		s.Signal(new, syscall.SIGUSR1)
		s.WaitLine(fmt.Sprintf(`msg="grace: serving" from=%d `, new))
		mustBeNonBlocking(t, new, w.sockets)
		s.WaitGone(old)
	}
	for range 10 {
		s.mustUpgrade()
	}
	w.end()
	if len(w.blocking) > 0 {
		t.Errorf("%d times a socket was blocking: %v", len(w.blocking), w.blocking[0])
	}
	if len(w.reads) < 5 {
		t.Errorf("the flags of %d processes were read; that shows nothing", len(w.reads))
	}
}

// mustBeNonBlocking: the process has all these sockets, non-blocking.
func mustBeNonBlocking(t *testing.T, pid int, sockets map[string]bool) {
	t.Helper()
	fds, err := proctest.FDs(pid)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	for fd, target := range fds {
		if !sockets[target] {
			continue
		}
		flags, ok := fileFlags(pid, fd, target)
		if !ok {
			continue
		}
		found[target] = true
		if flags&syscall.O_NONBLOCK == 0 {
			t.Errorf("descriptor %d of process %d is blocking", fd, pid)
		}
	}
	if len(found) != len(sockets) {
		t.Errorf("process %d has %d of %d sockets", pid, len(found), len(sockets))
	}
}
