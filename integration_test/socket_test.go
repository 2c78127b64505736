//go:build linux

package integration_test

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/proctest"
)

// askRaw asks a raw listener which process and generation it has, and lets it
// echo a word.
func askRaw(network, addr string) (pid, generation int, err error) {
	c, err := net.DialTimeout(network, addr, proctest.Limit)
	if err != nil {
		return 0, 0, err
	}
	defer c.Close()
	return readRaw(c)
}

func readRaw(c net.Conn) (pid, generation int, err error) {
	c.SetDeadline(time.Now().Add(proctest.Limit))
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return 0, 0, err
	}
	_, err = fmt.Sscan(line, &pid, &generation)
	return pid, generation, err
}

// wantRaw checks that a generation answers. An Accept that had begun before a
// hand-over may take one more connection in the old process.
func wantRaw(t *testing.T, network, addr string, generation int) {
	t.Helper()
	got := 0
	for range 3 {
		var err error
		if _, got, err = askRaw(network, addr); err != nil {
			t.Fatalf("%s %s: %v", network, addr, err)
		}
		if got == generation {
			return
		}
	}
	t.Errorf("%s %s: generation %d answers, want %d", network, addr, got, generation)
}

// addrOf waits for the address of a listener of the test server.
func (s *server) addrOf(how, network string) string {
	s.t.Helper()
	return s.WaitLine(`^listening ` + how + ` ` + network + ` (\S+) pid=`)[1]
}

func TestNewConnectionsDuringUpgrades(t *testing.T) {
	s := startServer(t, "-raw", "tcp=127.0.0.1:0", "-probation", "20ms")
	addr := s.addrOf("raw", "tcp")
	type answer struct {
		begun, ended    time.Time
		pid, generation int
		err             error
	}
	const clients = 4
	answers := make([][]answer, clients)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() {
			for last := false; !last; {
				select {
				case <-stop:
					last = true // of the last generation, which is alone by now
				default:
				}
				a := answer{begun: time.Now()}
				a.pid, a.generation, a.err = askRaw("tcp", addr)
				a.ended = time.Now()
				answers[i] = append(answers[i], a)
			}
		})
	}
	// From over[n] on generation n alone accepts; until then both may.
	pids := map[int]int{1: s.Pid()}
	begun := map[int]time.Time{}
	over := map[int]time.Time{}
	const upgrades = 5
	for n := 2; n < 2+upgrades; n++ {
		old := s.filePid()
		begun[n] = time.Now()
		s.Signal(old, syscall.SIGUSR2)
		s.WaitLine(`standing by.* new=`)
		over[n] = time.Now()
		s.WaitGone(old)
		pids[n] = s.WaitAlone()
	}
	close(stop)
	wg.Wait()
	total, late := 0, map[int]int{}
	for _, as := range answers {
		for _, a := range as {
			total++
			if a.err != nil {
				t.Fatalf("a connection was lost: %v", a.err)
			}
			if a.pid != pids[a.generation] {
				t.Fatalf("generation %d answers as process %d, want %d", a.generation, a.pid, pids[a.generation])
			}
			if at, ok := begun[a.generation]; ok && a.ended.Before(at) {
				t.Errorf("generation %d answers before its upgrade", a.generation)
			}
			// Not more than the one Accept that had begun before.
			if at, ok := over[a.generation+1]; ok && a.begun.After(at) {
				late[a.generation]++
			}
		}
	}
	for generation, n := range late {
		if n > 1 {
			t.Errorf("generation %d took %d connections after it had handed over", generation, n)
		}
	}
	for i, as := range answers {
		if last := as[len(as)-1].generation; last != 1+upgrades {
			t.Errorf("client %d was answered by generation %d last, want %d", i, last, 1+upgrades)
		}
	}
	if total < clients*upgrades {
		t.Errorf("only %d connections", total)
	}
}

func TestNetworksOverThreeGenerations(t *testing.T) {
	dir := t.TempDir()
	unix, packet, gram := filepath.Join(dir, "u"), filepath.Join(dir, "p"), filepath.Join(dir, "g")
	abstract := "@grace-test-" + filepath.Base(filepath.Dir(dir)) + fmt.Sprint(os.Getpid())
	raw := [][2]string{
		{"tcp", "127.0.0.1:0"}, {"tcp4", ":0"}, {"tcp6", "[::1]:0"}, {"tcp6", ":0"}, {"tcp", ":0"},
		{"unix", unix}, {"unixpacket", packet}, {"unix", abstract},
	}
	packets := [][2]string{{"udp", "127.0.0.1:0"}, {"udp4", "127.0.0.1:0"}, {"udp6", "[::1]:0"}, {"unixgram", gram}}
	var args []string
	for _, a := range raw {
		args = append(args, "-raw", a[0]+"="+a[1])
	}
	for _, a := range packets {
		args = append(args, "-packet", a[0]+"="+a[1])
	}
	s := startServer(t, append(args, "-probation", "0s")...)
	var rawAddrs, packetAddrs []string
	listening := func() (addrs []string) {
		for _, a := range raw {
			addrs = append(addrs, s.addrOf("raw", a[0]))
		}
		for _, a := range packets {
			addrs = append(addrs, s.addrOf("packet", a[0]))
		}
		return addrs
	}
	first := listening()
	rawAddrs, packetAddrs = first[:len(raw)], first[len(raw):]
	modes := map[string]os.FileMode{unix: 0o600, packet: 0o640, gram: 0o666}
	inodes := map[string]uint64{}
	for path, mode := range modes {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		inodes[path] = inode(t, path)
	}
	for generation := 1; ; generation++ {
		for i, a := range raw {
			wantRaw(t, a[0], rawAddrs[i], generation)
		}
		for i, a := range packets {
			wantPacket(t, a[0], packetAddrs[i], generation)
		}
		for path, mode := range modes {
			fi, err := os.Lstat(path)
			if err != nil {
				t.Fatalf("generation %d: %v", generation, err)
			}
			if fi.Mode().Perm() != mode || inode(t, path) != inodes[path] {
				t.Errorf("generation %d: %s has mode %v, or is another file; want mode %v", generation, path, fi.Mode().Perm(), mode)
			}
		}
		if generation == 3 {
			break
		}
		s.mustUpgrade()
		if got := listening(); strings.Join(got, " ") != strings.Join(first, " ") {
			t.Errorf("generation %d listens on %v, want %v", generation+1, got, first)
		}
	}
	s.Signal(s.filePid(), syscall.SIGTERM)
	s.WaitAllGone()
	for path := range modes {
		if _, err := os.Lstat(path); !os.IsNotExist(err) {
			t.Errorf("%s is left after the last stop (%v)", path, err)
		}
	}
	if _, _, err := askRaw("unix", abstract); err == nil {
		t.Error("a process answers on the abstract socket after the last stop")
	}
}

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	fi, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	return fi.Sys().(*syscall.Stat_t).Ino
}

// wantPacket checks which generation answers a packet. One packet may still be
// read by a process whose read had begun before the hand-over.
func wantPacket(t *testing.T, network, addr string, generation int) {
	t.Helper()
	got := 0
	for range 3 {
		_, got = askPacket(t, network, addr)
		if got == generation {
			return
		}
	}
	t.Errorf("%s %s: generation %d answers, want %d", network, addr, got, generation)
}

func askPacket(t *testing.T, network, addr string) (pid, generation int) {
	t.Helper()
	var c net.Conn
	var err error
	if network == "unixgram" { // the answer needs an address too
		local := filepath.Join(t.TempDir(), "c")
		c, err = net.DialUnix(network, &net.UnixAddr{Net: network, Name: local}, &net.UnixAddr{Net: network, Name: addr})
	} else {
		c, err = net.Dial(network, addr)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(proctest.Limit))
	if _, err := c.Write([]byte("word")); err != nil {
		t.Fatalf("%s %s: %v", network, addr, err)
	}
	b := make([]byte, 100)
	n, err := c.Read(b)
	if err != nil {
		t.Fatalf("%s %s: %v", network, addr, err)
	}
	word := ""
	if _, err := fmt.Sscan(string(b[:n]), &pid, &generation, &word); err != nil || word != "word" {
		t.Fatalf("%s %s answers %q", network, addr, b[:n])
	}
	return pid, generation
}

// Packets that come in during an upgrade are all answered.
func TestPacketsDuringUpgrades(t *testing.T) {
	s := startServer(t, "-packet", "udp=127.0.0.1:0", "-probation", "10ms")
	addr := s.addrOf("packet", "udp")
	stop := make(chan struct{})
	answered := make(chan map[int]int)
	go func() {
		byGeneration := map[int]int{}
		defer func() { answered <- byGeneration }()
		c, err := net.Dial("udp", addr)
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		b := make([]byte, 100)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			c.SetDeadline(time.Now().Add(proctest.Limit))
			fmt.Fprint(c, i)
			n, err := c.Read(b)
			var pid, generation, got int
			if err == nil {
				_, err = fmt.Sscan(string(b[:n]), &pid, &generation, &got)
			}
			if err != nil || got != i {
				t.Errorf("packet %d: answer %q, error %v", i, b[:n], err)
				return
			}
			byGeneration[generation]++
		}
	}()
	for range 5 {
		s.mustUpgrade()
	}
	close(stop)
	got := <-answered
	if len(got) < 2 || got[7] > 0 {
		t.Errorf("answers by generation: %v, want those of 1 to 6", got)
	}
}

func TestUnixSocketLeftByACrash(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	crashed := startServer(t, "-raw", "unix="+path)
	crashed.addrOf("raw", "unix")
	crashed.Kill()
	if _, err := os.Lstat(path); err != nil {
		t.Fatalf("the crash has left nothing: %v", err)
	}
	s := startServer(t, "-raw", "unix="+path, "-probation", "0s")
	wantRaw(t, "unix", path, 1)
	s.mustUpgrade()
	wantRaw(t, "unix", path, 2)

	// A process that comes second is told which one is there, after an upgrade too.
	second := proctest.Start(t, proctest.Command{
		Path: proctest.Build(t, serverPackage), Args: []string{"-raw", "unix=" + path},
	})
	second.WaitLine(fmt.Sprintf(`another process answers on this path \(pid %d\)`, s.filePid()))
	if ws := second.WaitExit(second.Pid()); ws.ExitStatus() != 1 {
		t.Errorf("the second instance ended with %v, want exit status 1", ws)
	}
	wantRaw(t, "unix", path, 2)
}

func TestManyListeners(t *testing.T) {
	path := proctest.Build(t, serverPackage)
	for name, tc := range map[string]struct {
		n    int
		soft int // RLIMIT_NOFILE at the start
	}{
		"1000":                           {1000, 0},
		"2000 with a soft limit of 1024": {2000, 1024},
	} {
		t.Run(name, func(t *testing.T) {
			c := proctest.Command{Path: path, Args: []string{"-many", fmt.Sprint(tc.n), "-probation", "0s"}}
			if tc.soft > 0 {
				file := filepath.Join(t.TempDir(), "app.pid")
				c = proctest.Command{Path: "/bin/sh", Args: []string{
					"-c", fmt.Sprintf(`ulimit -Sn %d; exec "$@"`, tc.soft), "sh", path,
					"-many", fmt.Sprint(tc.n), "-probation", "0s", "-http", "tcp=127.0.0.1:0", "-pidfile", file,
				}}
				s := &server{t: t, Process: proctest.Start(t, c), pidFile: file}
				checkMany(t, s, tc.n)
				for _, l := range s.Lines() {
					if strings.HasPrefix(l, "limit ") && l != fmt.Sprint("limit ", tc.soft) {
						t.Errorf("a child of the server has %s, want %d", l, tc.soft)
					}
				}
				return
			}
			checkMany(t, startServerAs(t, c), tc.n)
		})
	}
}

func checkMany(t *testing.T, s *server, n int) {
	t.Helper()
	first := strings.Fields(s.WaitLine(`^many pid=\d+ (.*)`)[1])
	if len(first) != n {
		t.Fatalf("%d listeners, want %d", len(first), n)
	}
	if s.Count(`msg="grace: serving"`) == 0 || s.addr == "" {
		s.WaitLine(`msg="grace: serving"`)
	}
	for generation := 2; generation <= 3; generation++ {
		s.mustUpgrade()
		got := s.WaitLine(`^many pid=\d+ (.*)`)[1]
		if got != strings.Join(first, " ") {
			t.Fatalf("generation %d listens on other ports, or in another order", generation)
		}
	}
	for i := 0; i < n; i += 7 {
		wantRaw(t, "tcp", first[i], 3)
	}
	wantRaw(t, "tcp", first[n-1], 3)
}
