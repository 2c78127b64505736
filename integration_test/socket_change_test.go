//go:build linux

package integration_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/proctest"
)

func TestListenerAddedAndDropped(t *testing.T) {
	s := startServer(t, "-http1", "tcp=127.0.0.1:0", "-raw1", "tcp4=127.0.0.1:0", "-raw2", "tcp=localhost:0", "-probation", "0s")
	s.addrOf("http", "tcp") // the one of all generations was taken by startServer
	dropped := s.addrOf("raw", "tcp4")
	old := s.Pid()

	// Stop the process, so that connections wait in its queue when the new one is
	// ready.
	hold := s.hold()
	before := make([]net.Conn, 20)
	s.misbehave("pause@listen")
	result := s.beginUpgrade()
	paused := atoi(t, s.WaitLine(`^paused at listen pid=(\d+)`)[1])
	added := s.addrOf("raw", "tcp")
	for i := range before {
		c, err := net.Dial("tcp", dropped)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		before[i] = c
	}
	s.Signal(paused, syscall.SIGUSR1)
	if r := s.waitResult(result); r.Err != "" {
		t.Fatalf("Upgrade: %s", r.Err)
	}
	for i, c := range before {
		pid, generation, err := readRaw(c)
		if err != nil || pid != old || generation != 1 {
			t.Errorf("connection %d of the dropped listener: process %d, generation %d, error %v; want the old one", i, pid, generation, err)
		}
	}
	wantRaw(t, "tcp", added, 2)
	if c, err := net.Dial("tcp", dropped); err == nil {
		// The old process may still be about to close it; then no process answers.
		c.Close()
	}
	hold.release()
	s.WaitGone(old)
	if c, err := net.Dial("tcp", dropped); err == nil {
		c.Close()
		t.Error("the dropped listener is still there")
	} else if !strings.Contains(err.Error(), "refused") {
		t.Errorf("dial the dropped listener: %v, want connection refused", err)
	}
}

// The new process has dropped a listener and dies in the drain, and its address is
// another program's by then. That costs this address and nothing else, is said, and is
// tried until it works.
func TestDroppedAddressIsTaken(t *testing.T) {
	s := startServer(t, "-raw1", "tcp4=127.0.0.1:0", "-probation", "0s")
	dropped := s.addrOf("raw", "tcp4")
	old := s.Pid()
	h := s.hold()
	s.Signal(old, syscall.SIGUSR2)
	s.WaitLine(`upgrade done; draining"`)
	new := s.successor(old)
	var other net.Listener
	proctest.WaitFor(t, proctest.Limit, "the address of the dropped listener", func() (free bool) {
		var err error
		other, err = net.Listen("tcp4", dropped)
		return err == nil
	})
	defer other.Close()
	s.Signal(new, syscall.SIGKILL)
	s.WaitLine(fmt.Sprintf(`a listener can't be opened again; .*from=%d .*address=%s `, old, dropped))
	s.WaitLine(`rolled back; this process accepts again"`)
	if pid := s.servingPid(); pid != old {
		t.Errorf("process %d answers, want %d", pid, old)
	}
	other.Close()
	s.WaitLine(fmt.Sprintf(`a listener was opened again" from=%d .*address=%s `, old, dropped))
	wantRaw(t, "tcp4", dropped, 1)
	h.release()
	s.waitFilePid(old)
	s.mustUpgrade()
}

func TestReusePort(t *testing.T) {
	port := freePort(t)
	s := startServer(t, "-reuseport", "-raw", "tcp="+port, "-raw", "tcp="+port, "-probation", "0s")
	inodes := func() map[string]bool {
		found := map[string]bool{}
		listening := listeningInodes(t, port)
		fds, err := proctest.FDs(s.filePid())
		if err != nil {
			t.Fatal(err)
		}
		for _, target := range fds {
			if listening[target] {
				found[target] = true
			}
		}
		return found
	}
	first := inodes()
	if len(first) != 2 {
		t.Fatalf("the server has %d sockets on %s, want 2", len(first), port)
	}
	l := s.startLoad(1)
	for generation := 2; generation <= 4; generation++ {
		s.mustUpgrade()
		now := inodes()
		for target := range first {
			if !now[target] {
				t.Errorf("generation %d does not have %s", generation, target)
			}
		}
		if len(now) != 2 {
			t.Errorf("generation %d has %d sockets on %s, want 2", generation, len(now), port)
		}
		for range 20 { // to either
			wantRaw(t, "tcp", port, generation)
		}
	}
	l.mustLoseNothing(t)
}

// freePort gives an address that was free a moment ago.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// listeningInodes are the sockets that listen on addr, as /proc/PID/fd has them.
func listeningInodes(t *testing.T, addr string) map[string]bool {
	t.Helper()
	table, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		t.Fatal(err)
	}
	var port int
	fmt.Sscanf(addr, "127.0.0.1:%d", &port)
	local := fmt.Sprintf("0100007F:%04X", port)
	found := map[string]bool{}
	for _, l := range strings.Split(string(table), "\n") {
		if f := strings.Fields(l); len(f) > 9 && f[1] == local && f[3] == "0A" {
			found["socket:["+f[9]+"]"] = true
		}
	}
	return found
}

// Where the kernel has MPTCP; elsewhere it is the same test with plain TCP.
func TestMultipathTCPSurvives(t *testing.T) {
	dial := func(addr string) (bool, net.Conn) {
		d := &net.Dialer{Timeout: proctest.Limit}
		d.SetMultipathTCP(true)
		c, err := d.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		multipath, err := c.(*net.TCPConn).MultipathTCP()
		if err != nil {
			t.Fatal(err)
		}
		return multipath, c
	}
	// What the kernel can do without us.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	want, c := dial(l.Addr().String())
	c.Close()

	s := startServer(t, "-raw", "tcp=127.0.0.1:0", "-probation", "0s")
	addr := s.addrOf("raw", "tcp")
	for generation := 1; generation <= 3; generation++ {
		if generation > 1 {
			s.mustUpgrade()
		}
		got, c := dial(addr)
		_, n, err := readRaw(c)
		c.Close()
		if err != nil || n != generation || got != want {
			t.Errorf("generation %d answers, multipath %v, error %v; want generation %d, multipath %v", n, got, err, generation, want)
		}
	}
}

func TestFilesAndConnectionsOverThreeGenerations(t *testing.T) {
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, []byte("0123456789"), 0o644); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s := startServer(t, "-file", file, "-conn", "tcp="+l.Addr().String(), "-probation", "0s")
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(2 * proctest.Limit))
	peer := bufio.NewReader(c)
	for generation := 1; generation <= 3; generation++ {
		if generation > 1 {
			s.mustUpgrade()
		}
		// The file's offset is shared by all generations.
		if got, want := s.mustGet("/file"), fmt.Sprintf("%d%d in generation %d", 2*generation-2, 2*generation-1, generation); got != want {
			t.Errorf("the file gives %q, want %q", got, want)
		}
		s.mustGet("/conn")
		if got, err := peer.ReadString('\n'); err != nil || got != fmt.Sprintf("generation %d\n", generation) {
			t.Errorf("the connection gives %q, error %v, in generation %d", got, err, generation)
		}
	}
	// The peer sees the end when the last process has ended, not before.
	s.Signal(s.filePid(), syscall.SIGTERM)
	if rest, err := io.ReadAll(peer); err != nil || len(rest) > 0 {
		t.Errorf("at the end the connection gives %q, error %v", rest, err)
	}
}
