//go:build linux

package integration_test

import (
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/proctest"
)

// What tableflip's documentation promises of its Fds.

// TestTableflipFds: whatever way a socket has come, and though the program has
// closed its own, the next two processes get it, by the same name only.
func TestTableflipFds(t *testing.T) {
	f, p := startFlip(t, "")
	sockets := []struct{ add, get, network, addr string }{
		{"listen", "listener", "tcp", "127.0.0.1:0"},
		{"listen", "listen", "tcp4", "127.0.0.1:0"},
		{"listen", "listencallback", "unix", f.path("listen")},
		{"listen", "listener", "unixpacket", f.path("unixpacket")},
		{"listen", "listener", "unix", fmt.Sprintf("@grace-tableflip-%d", p.pid)},
		{"listen", "listener", "unix", `""`},
		{"listencallback", "listencallback", "tcp", "localhost:0"},
		{"listencallback", "listener", "unix", f.path("callback")},
		{"addlistener", "listener", "tcp6", "[::1]:0"},
		{"addlistener", "listen", "unix", f.path("add")},
		{"listenpacket", "packetconn", "udp", "127.0.0.1:0"},
		{"listenpacket", "packetcallback", "unixgram", f.path("unixgram")},
		{"packetcallback", "listenpacket", "udp4", "127.0.0.1:0"},
		{"addpacketconn", "packetconn", "udp", "localhost:0"},
	}
	want := make([]string, len(sockets))
	for i, s := range sockets {
		want[i] = p.do("%s %d %s %s", s.add, i, s.network, s.addr)
		p.want("ok", "close %d", i)
	}
	p.want("ok", "ready")
	for range 2 {
		called := f.p.Count("^callback")
		p = p.next("", func(n *flipper) {
			n.want("none", "listener x tcp 127.0.0.1:1")
			n.want("none", "packetconn x udp 127.0.0.1:1")
			for i, s := range sockets {
				n.want(want[i], "%s %d %s %s", s.get, i, s.network, s.addr)
				if s.get == "listener" || s.get == "packetconn" {
					n.want("none", "%s again %s %s", s.get, s.network, s.addr)
				}
				n.want("ok", "close %d", i)
			}
		})
		if n := f.p.Count("^callback") - called; n != 0 {
			t.Errorf("%d callbacks were called for what is inherited", n)
		}
	}
}

// TestTableflipUnused: what nothing has asked for is closed after Ready.
func TestTableflipUnused(t *testing.T) {
	f, p := startFlip(t, "")
	addr := p.do("listen a tcp 127.0.0.1:0")
	for kind, network := range map[string]string{"listen": "unix", "addlistener": "unix", "listenpacket": "unixgram"} {
		p.do("%s %s %s %s", kind, kind, network, f.path(kind))
	}
	p.want("ok", "addfile data /dev/zero")
	p.want("ok", "ready")
	n := p.next("", nil)
	for _, kind := range []string{"listen", "addlistener", "listenpacket"} {
		if f.exists(f.path(kind)) {
			t.Errorf("the path of %s is left", kind)
		}
	}
	if c, err := net.Dial("tcp", addr); err == nil {
		c.Close()
		t.Errorf("%s still takes connections", addr)
	}
	n.want("none", "file data")
	n.want("none", "listener a tcp 127.0.0.1:0")
	proctest.WaitFor(t, proctest.Limit, "the file to be closed", func() bool {
		fds, err := proctest.FDs(n.pid)
		if err != nil {
			t.Fatal(err)
		}
		for _, what := range fds {
			if what == "/dev/zero" {
				return false
			}
		}
		return true
	})
}

// TestTableflipOverwritten: of two with one name the second is handed over.
func TestTableflipOverwritten(t *testing.T) {
	f, p := startFlip(t, "")
	first := p.do("listen a tcp 127.0.0.1:0")
	second := p.do("addlistener b tcp 127.0.0.1:0")
	p.do("addpacketconn c udp 127.0.0.1:0")
	packet := p.do("addpacketconn d udp 127.0.0.1:0")
	p.want("ok", "addfile f /dev/null")
	p.want("ok", "addfile f /dev/zero")
	p.want("ok", "ready")
	n := p.next("", func(n *flipper) {
		n.want(second, "listen a tcp 127.0.0.1:0")
		n.want(packet, "listenpacket d udp 127.0.0.1:0")
		n.want("f", "file f")
	})
	if c, err := net.Dial("tcp", first); err == nil {
		c.Close()
		t.Errorf("the listener that was overwritten takes connections")
	}
	fds, err := proctest.FDs(n.pid)
	if err != nil {
		t.Fatal(err)
	}
	files := 0
	for _, what := range fds {
		if what == "/dev/zero" {
			files++
		}
	}
	if files != 1 { // what File has given is closed; the Upgrader's own is not
		t.Errorf("the new process has %d descriptors of /dev/zero, want 1: %v", files, fds)
	}
	_ = f
}

func TestTableflipConn(t *testing.T) {
	_, p := startFlip(t, "")
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	p.want("ok", "addconn c tcp %s", ln.Addr())
	c, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	p.want("ok", "close c")
	p.want("ok", "ready")
	for range 2 {
		n := p.next("", func(n *flipper) {
			n.want("none", "conn c tcp 127.0.0.1:1")
			n.want("here", "conn c tcp %s", ln.Addr())
			n.want("none", "conn again tcp %s", ln.Addr())
			n.want("ok", "write c")
			n.want("ok", "close c")
		})
		b := make([]byte, 100)
		c.SetReadDeadline(time.Now().Add(proctest.Limit))
		k, err := c.Read(b)
		if want := fmt.Sprintf("pid=%d\n", n.pid); err != nil || string(b[:k]) != want {
			t.Fatalf("the connection gave %q, %v, want %q", b[:k], err, want)
		}
		p = n
	}
}

func TestTableflipFiles(t *testing.T) {
	f, p := startFlip(t, "")
	for _, name := range []string{"a", "b", "c"} {
		if err := os.WriteFile(f.path(name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		p.want("ok", "addfile %s %s", name, f.path(name))
	}
	p.do("addlistener l tcp 127.0.0.1:0") // no file of the program's
	p.want("none", "file a")              // not inherited
	p.want("ok", "ready")
	for range 2 {
		p = p.next("", func(n *flipper) {
			n.want("b", "file b")
			n.want("none", "file b")
			n.want("none", "file d")
			names := strings.Fields(n.do("files"))
			slices.Sort(names)
			if got := strings.Join(names, " "); got != "a c" {
				t.Errorf("Files gave %q, want those that nothing has asked for, a and c", got)
			}
			n.want("", "files")
		})
	}
}

func TestTableflipListenConfig(t *testing.T) {
	f, p := startFlip(t, "control")
	addr := p.do("listen a tcp4 127.0.0.1:0")
	f.p.WaitLine(`^control tcp4`)
	p.do("listenpacket b udp4 127.0.0.1:0")
	f.p.WaitLine(`^control udp4`)
	p.want("ok", "serve a")
	p.want("ok", "ready")
	if got := f.get("tcp", addr); got != p.pid {
		t.Errorf("process %d answers, want %d", got, p.pid)
	}
}

// TestTableflipPackets: a packet is read by the process that reads.
func TestTableflipPackets(t *testing.T) {
	_, p := startFlip(t, "")
	addr, _, _ := strings.Cut(p.do("listenpacket a udp 127.0.0.1:0"), " ")
	p.want("ok", "ready")
	c, err := net.Dial("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprint(c, "one")
	p.want("one", "receive a")
	fmt.Fprint(c, "two") // waits in the socket
	p.want("ok", "close a")
	n := p.next("", func(n *flipper) { n.do("packetconn a udp 127.0.0.1:0") })
	n.want("two", "receive a")
}
