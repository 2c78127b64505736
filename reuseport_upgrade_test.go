//go:build unix

package grace

import (
	"errors"
	"net"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestReusePortListenersMatchInOrder(t *testing.T) {
	reuse := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		cerr := c.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
		})
		return errors.Join(cerr, err)
	}}
	port := ""
	inodes := make(chan [2]uint64, 2)
	h := newHouse(t, func(g *generation) error {
		var ids [2]uint64
		for i := range ids {
			addr := "127.0.0.1:" + port
			l, err := g.Listen("tcp", addr)
			if err != nil {
				return err
			}
			_, port, _ = net.SplitHostPort(l.Addr().String())
			g.serve(l)
			g.socks.Snapshot()[i].Control(func(fd uintptr) {
				var st unix.Stat_t
				unix.Fstat(int(fd), &st)
				ids[i] = st.Ino
			})
		}
		inodes <- ids
		return g.Ready()
	})
	h.opts = func(int) []Option { return []Option{Probation(0), ListenConfig(reuse)} }
	g := h.first()
	if g.err != nil {
		t.Fatal(g.err)
	}
	done := g.upgrade()
	next := h.next()
	if err := receive(t, done, "Upgrade"); err != nil {
		t.Fatal(err)
	}
	// Each queue is that of one socket: both must be handed over.
	a, b := <-inodes, <-inodes
	if a[0] == a[1] || a[0] != b[0] && a[0] != b[1] || a[1] != b[0] && a[1] != b[1] {
		t.Errorf("the sockets are %v, and were %v", b, a)
	}
	next.askStop()
}
