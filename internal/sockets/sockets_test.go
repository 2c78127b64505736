//go:build unix

package sockets

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/julofinance/grace/v3/internal/gate"
	"github.com/julofinance/grace/v3/internal/manifest"
	"golang.org/x/sys/unix"
)

func TestSameBinding(t *testing.T) {
	all := func(network, bound string) manifest.Entry {
		return manifest.Entry{Kind: manifest.Listener, Network: network, Bound: bound}
	}
	six := func(network, bound string) manifest.Entry {
		e := all(network, bound)
		e.V6Only = true
		return e
	}
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		e             manifest.Entry
		network, addr string
		want          bool
	}{
		// What the wildcards open is one socket for both families.
		{all("tcp", "[::]:9000"), "tcp", ":9000", true},
		{all("tcp", "[::]:9000"), "tcp", "0.0.0.0:9000", true},
		{all("tcp", "[::]:9000"), "tcp", "[::]:9000", true},
		{all("tcp", "[::]:9000"), "tcp", ":9001", false},
		{all("tcp", "[::]:9000"), "tcp", ":0", false},
		{all("tcp", "[::]:9000"), "tcp4", ":9000", false},
		{all("tcp", "[::]:9000"), "tcp6", ":9000", false}, // takes no IPv4
		{all("tcp", "[::]:9000"), "udp", ":9000", false},
		{all("tcp", "[::]:9000"), "tcp", "127.0.0.1:9000", false},
		{all("tcp", "[::]:80"), "tcp", ":http", true},
		{six("tcp6", "[::]:9000"), "tcp6", ":9000", true},
		{six("tcp6", "[::]:9000"), "tcp6", "[::]:9000", true},
		{six("tcp6", "[::]:9000"), "tcp", ":9000", false},
		{six("tcp6", "[::]:9000"), "tcp4", ":9000", false},
		{all("tcp4", "0.0.0.0:9000"), "tcp4", ":9000", true},
		{all("tcp4", "0.0.0.0:9000"), "tcp4", "0.0.0.0:9000", true},
		{all("tcp4", "0.0.0.0:9000"), "tcp", ":9000", false},
		{all("tcp4", "0.0.0.0:9000"), "tcp6", ":9000", false},
		{all("tcp", "0.0.0.0:9000"), "tcp", ":9000", true}, // a host without IPv6
		// Single addresses.
		{all("tcp", "127.0.0.1:9000"), "tcp", "127.0.0.1:9000", true},
		{all("tcp", "127.0.0.1:9000"), "tcp4", "127.0.0.1:9000", true},
		{all("tcp", "127.0.0.1:9000"), "tcp", "localhost:9000", true},
		{all("tcp", "127.0.0.1:9000"), "tcp6", "localhost:9000", false},
		{all("tcp", "127.0.0.1:9000"), "tcp", "127.0.0.2:9000", false},
		{all("tcp", "127.0.0.1:9000"), "tcp", ":9000", false},
		{all("tcp", "127.0.0.1:9000"), "tcp", "127.0.0.1:0", false},
		{all("tcp", "[::1]:9000"), "tcp6", "[::1]:9000", true},
		{all("tcp", "[::1]:9000"), "tcp", "[::1]:9000", true},
		{all("tcp", "[::1]:9000"), "tcp4", "localhost:9000", false},
		{all("udp", "127.0.0.1:53"), "udp4", "127.0.0.1:53", true},
		{all("udp", "[::]:53"), "udp", ":53", true},
		// What can't be read matches nothing.
		{all("tcp", "127.0.0.1:9000"), "tcp", "127.0.0.1", false},
		{all("tcp", "127.0.0.1:9000"), "tcp", "127.0.0.1:nonsense", false},
		{all("tcp", "?"), "tcp", ":9000", false},
		// Unix sockets: one file, however it is written.
		{all("unix", "/run/x"), "unix", "/run/x", true},
		{all("unix", "/run/x"), "unix", "/run/y", false},
		{all("unix", "/run/x"), "unixpacket", "/run/x", false},
		{all("unix", "@name"), "unix", "@name", true},
		{all("unix", "@name"), "unix", "@other", false},
		{manifest.Entry{Kind: manifest.Listener, Network: "unix", Bound: "x", Path: filepath.Join(wd, "x")}, "unix", filepath.Join(wd, "x"), true},
		{manifest.Entry{Kind: manifest.Listener, Network: "unix", Bound: "x", Path: filepath.Join(wd, "x")}, "unix", "./x", true},
		{manifest.Entry{Kind: manifest.Listener, Network: "unix", Bound: "x", Path: "/elsewhere/x"}, "unix", "./x", false},
	} {
		t.Run(fmt.Sprintf("%s %s for %s %s", tc.e.Network, tc.e.Bound, tc.network, tc.addr), func(t *testing.T) {
			if got := want(tc.network, tc.addr).is(tc.e); got != tc.want {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
}

// What is says of wildcards is what net.Listen does here.
func TestSameBindingIsWhatTheKernelBinds(t *testing.T) {
	for _, open := range []struct{ network, addr string }{
		{"tcp", ":"}, {"tcp", "0.0.0.0:"}, {"tcp", "[::]:"}, {"tcp4", ":"}, {"tcp6", ":"},
		{"tcp", "127.0.0.1:"}, {"tcp", "localhost:"}, {"tcp6", "[::1]:"},
	} {
		l, err := net.Listen(open.network, open.addr+"0")
		if err != nil {
			t.Fatal(err)
		}
		e := describe(manifest.Listener, open.network, open.addr, l)
		_, port, _ := net.SplitHostPort(l.Addr().String())
		if !want(open.network, open.addr+port).is(e) {
			t.Errorf("%s %s%s is bound to %s (IPv6 only: %v), and not found again", open.network, open.addr, port, e.Bound, e.V6Only)
		}
		l.Close()
	}
}

func TestClaim(t *testing.T) {
	m := &manifest.Manifest{Sockets: []manifest.Entry{
		{Kind: manifest.Listener, Network: "tcp", Addr: ":0", Bound: "[::]:1000"},
		{Kind: manifest.Listener, Network: "tcp", Addr: ":0", Bound: "[::]:1001"},
		{Kind: manifest.Packet, Network: "udp", Addr: ":0", Bound: "[::]:1002"},
		{Kind: manifest.Listener, Network: "tcp", Addr: "127.0.0.1:0", Bound: "127.0.0.1:1003"},
		{Kind: manifest.Listener, Network: "tcp", Addr: ":1001", Bound: "[::]:1001"}, // with SO_REUSEPORT
		{Kind: manifest.File, Addr: "f"},
		{Kind: manifest.Conn, Addr: "f"},
	}}
	s := New(m, 10)
	for _, tc := range []struct {
		k             manifest.Kind
		network, addr string
		want          int // index; -1: none
	}{
		{manifest.Listener, "tcp", ":1001", 4}, // the name before the binding
		{manifest.Listener, "tcp", ":0", 0},
		{manifest.Listener, "tcp", "0.0.0.0:1001", 1},
		{manifest.Listener, "tcp", ":0", -1},
		{manifest.Packet, "udp", ":1002", 2},
		{manifest.Listener, "tcp", "127.0.0.1:1003", 3},
		{manifest.Conn, "", "g", -1},
		{manifest.Conn, "", "f", 6},
		{manifest.File, "", "f", 5},
		{manifest.File, "", "f", -1},
	} {
		in, ok := s.Claim(tc.k, tc.network, tc.addr)
		if !ok {
			in.Index = -1
		}
		if in.Index != tc.want || ok && in.FD != 10+tc.want {
			t.Errorf("%s %s %s: got socket %d with descriptor %d, want socket %d", tc.k, tc.network, tc.addr, in.Index, in.FD, tc.want)
		}
	}
	if len(s.unclaimed) != 0 {
		t.Errorf("%d are left", len(s.unclaimed))
	}
}

// leaveStale leaves a socket behind as a crash does.
func leaveStale(t *testing.T, network, path string) {
	t.Helper()
	typ := map[string]int{"unix": unix.SOCK_STREAM, "unixpacket": unix.SOCK_SEQPACKET, "unixgram": unix.SOCK_DGRAM}[network]
	fd, err := unix.Socket(unix.AF_UNIX, typ, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	if typ != unix.SOCK_DGRAM {
		if err := unix.Listen(fd, 1); err != nil {
			t.Fatal(err)
		}
	}
}

// open opens a unix socket of any kind.
func (s *Set) openAny(network, path string) (func() error, error) {
	if network == "unixgram" {
		p, err := s.ListenPacket(net.ListenConfig{}, network, path)
		if err != nil {
			return nil, err
		}
		return p.Close, nil
	}
	l, err := s.Listen(net.ListenConfig{}, network, path)
	if err != nil {
		return nil, err
	}
	return l.Close, nil
}

func TestUnixPaths(t *testing.T) {
	for _, network := range []string{"unix", "unixpacket", "unixgram"} {
		t.Run(network, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "s")
			leaveStale(t, network, path)
			end, err := New(nil, 0).openAny(network, path)
			if err != nil {
				t.Fatalf("a stale socket is not replaced: %v", err)
			}
			dev, ino, err := fileID(path)
			if err != nil {
				t.Fatal(err)
			}
			for _, other := range []string{"unix", "unixpacket", "unixgram"} {
				_, err := New(nil, 0).openAny(other, path)
				if !errors.Is(err, ErrAnswered) || !errors.Is(err, syscall.EADDRINUSE) || strings.Count(fmt.Sprint(err), "grace: ") != 1 {
					t.Errorf("%s on a path that another socket has: %v, want ErrAnswered", other, err)
				}
				if want := fmt.Sprintf("(pid %d)", os.Getpid()); other == network && network != "unixgram" && !strings.Contains(fmt.Sprint(err), want) {
					t.Errorf("the error %v does not say %s", err, want)
				}
			}
			if d, i, err := fileID(path); d != dev || i != ino || err != nil {
				t.Errorf("the path of a living socket was replaced")
			}
			if err := end(); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the path is left after Close (%v)", err)
			}
		})
	}
}

func TestUnixPathErrors(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		network, path string
		want          error
		text          string
	}{
		"a file":            {"unix", file, syscall.EADDRINUSE, "is not a socket"},
		"a directory":       {"unix", dir, syscall.EADDRINUSE, "is not a socket"},
		"no such directory": {"unix", filepath.Join(dir, "no", "s"), syscall.ENOENT, "no/s"},
		"too long":          {"unix", filepath.Join(dir, strings.Repeat("x", 200)), syscall.EINVAL, "xxx"},
		"no such network":   {"sctp", ":0", nil, "have tcp, tcp4, tcp6, unix, unixpacket"},
		"packets on stream": {"unixgram", file, syscall.EADDRINUSE, "is not a socket"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := New(nil, 0).openAny(tc.network, tc.path)
			if err == nil || tc.want != nil && !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.text) ||
				!strings.HasPrefix(err.Error(), "grace: ") || strings.Count(err.Error(), "grace: ") != 1 {
				t.Errorf("got %v, want an error that is %v and has %q", err, tc.want, tc.text)
			}
		})
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "precious" {
		t.Errorf("the file was touched: %q, %v", b, err)
	}
	if _, err := New(nil, 0).ListenPacket(net.ListenConfig{}, "ip4:1", "127.0.0.1"); err == nil || !strings.Contains(err.Error(), "have udp") {
		t.Errorf("ListenPacket of ip4:1: %v, want an error", err)
	}
}

// Of several that start at once one has the path, and the others know it.
func TestUnixPathHasOneOwner(t *testing.T) {
	dir := t.TempDir()
	for round := range 300 {
		path := filepath.Join(dir, fmt.Sprint(round))
		if round%2 == 0 {
			leaveStale(t, "unix", path)
		}
		const n = 4
		var mu sync.Mutex
		var winners []*Listener
		var wg sync.WaitGroup
		start := make(chan struct{})
		for range n {
			wg.Go(func() {
				<-start
				l, err := New(nil, 0).Listen(net.ListenConfig{}, "unix", path)
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					winners = append(winners, l)
				} else if !errors.Is(err, ErrAnswered) {
					t.Errorf("round %d: %v, want ErrAnswered", round, err)
				}
			})
		}
		close(start)
		wg.Wait()
		if len(winners) != 1 {
			t.Fatalf("round %d: %d of %d have the path, want 1", round, len(winners), n)
		}
		l := winners[0]
		l.Gate.Set(gate.Open)
		go func() {
			for { // the others have looked whether a process answers
				c, err := l.Accept()
				if err != nil {
					return
				}
				fmt.Fprint(c, "mine")
				c.Close()
			}
		}()
		if got := ask(t, l.Addr()); got != "mine" {
			t.Fatalf("round %d: on the path answers %q", round, got)
		}
		l.Close()
	}
}

// Only the file that we made is removed.
func TestUnixPathOfAnotherSocketStays(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	s := New(nil, 0)
	l, err := s.Listen(net.ListenConfig{}, "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	// Another program removes the path and makes a new one; ours is kept aside, so that
	// its inode number is not given away.
	if err := os.Rename(path, path+".ours"); err != nil {
		t.Fatal(err)
	}
	leaveStale(t, "unix", path)
	l.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the path of another program was removed: %v", err)
	}
}

// Listen that fails leaves nothing: no socket for the next process, whose descriptor
// may be another file's by then, and no path.
func TestListenThatFailsLeavesNothing(t *testing.T) {
	s := New(nil, 0)
	l, err := s.Listen(reusable, "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.letGo()
	s = New(nil, 0)
	s.OpenGates()
	if err := s.Add(l.Sock); err == nil {
		t.Error("a socket that is closed listens")
	}
	if n := len(s.Snapshot()); n != 0 {
		t.Errorf("%d sockets would be handed over, want none", n)
	}
	s.Close()
	path := filepath.Join(t.TempDir(), "s")
	if _, err := s.Listen(net.ListenConfig{}, "unix", path); !errors.Is(err, ErrStopped) {
		t.Errorf("Listen after the end: %v", err)
	}
	if _, err := s.ListenPacket(net.ListenConfig{}, "unixgram", path+"gram"); !errors.Is(err, ErrStopped) {
		t.Errorf("ListenPacket after the end: %v", err)
	}
	for _, p := range []string{path, path + "gram"} {
		if _, err := os.Lstat(p); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left (%v)", p, err)
		}
	}
}
