//go:build unix

package sockets

import (
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/testing/wait"
)

// TestUnixConnReadsUnread: bytes that came along with a connection come first,
// however it is read.
func TestUnixConnReadsUnread(t *testing.T) {
	reads := map[string]func(c *UnixConn, b []byte) (int, net.Addr, error){
		"Read":         func(c *UnixConn, b []byte) (int, net.Addr, error) { n, err := c.Read(b); return n, nil, err },
		"ReadFrom":     func(c *UnixConn, b []byte) (int, net.Addr, error) { return c.ReadFrom(b) },
		"ReadFromUnix": func(c *UnixConn, b []byte) (int, net.Addr, error) { return addrOrNil(c.ReadFromUnix(b)) },
		"ReadMsgUnix": func(c *UnixConn, b []byte) (int, net.Addr, error) {
			n, _, _, addr, err := c.ReadMsgUnix(b, make([]byte, 8))
			return addrOrNil(n, addr, err)
		},
	}
	for _, named := range []bool{false, true} {
		for name, read := range reads {
			dir := t.TempDir()
			ln, err := net.Listen("unix", filepath.Join(dir, "s"))
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			var local *net.UnixAddr
			if named {
				local = &net.UnixAddr{Name: filepath.Join(dir, "c"), Net: "unix"}
			}
			client, err := net.DialUnix("unix", local, ln.Addr().(*net.UnixAddr))
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			inner, err := ln.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer inner.Close()
			client.Write([]byte("later"))
			inner.SetDeadline(time.Now().Add(wait.Limit))
			c := Tracked(inner, &Listener{}, []byte("first"), nil, nil).(*UnixConn)
			b := make([]byte, 3)
			var addrs []string
			for _, want := range []string{"fir", "st", "lat", "er"} {
				n, addr, err := read(c, b)
				if err != nil || string(b[:n]) != want {
					t.Fatalf("%s: got %q, %v; want %q", name, b[:n], err, want)
				}
				got := "none"
				if addr != nil {
					got = addr.String()
				}
				addrs = append(addrs, got)
			}
			if addrs[0] != addrs[2] || addrs[1] != addrs[3] {
				t.Errorf("%s: the addresses are %q; want the same for all", name, addrs)
			}
			c.Track.life = lifeMoving
			if _, _, err := read(c, b); err == nil {
				t.Errorf("%s: reads from a connection that has moved", name)
			}
		}
	}
}

func addrOrNil(n int, addr *net.UnixAddr, err error) (int, net.Addr, error) {
	if addr == nil {
		return n, nil, err
	}
	return n, addr, err
}
