//go:build linux

package grace

import (
	"net"
	"testing"

	"github.com/julofinance/grace/v3/internal/testing/fdtest"
	"golang.org/x/sys/unix"
)

// A stop between go and the first Accept of the new process: that one
// ends the sockets. The old process can't know how far it is.
func TestStopAfterGoLeavesTheSocketsToNew(t *testing.T) {
	addrs, went := make(chan net.Addr, 9), make(chan *generation, 1)
	serve := oneListener(addrs)
	h := newHouse(t, func(g *generation) error {
		if g.n == 1 {
			return serve(g)
		}
		if _, err := g.Listen("tcp", "127.0.0.1:0"); err != nil {
			return err
		}
		if err := g.handshake(); err != nil {
			return err
		}
		went <- g
		<-g.Done()
		return nil
	})
	g := h.first()
	<-addrs
	copied := -1
	g.socks.Snapshot()[0].Control(func(fd uintptr) { copied, _ = unix.Dup(int(fd)) })
	defer unix.Close(copied)
	g.upgrade()
	receive(t, went, "go")
	g.askStop()
	receive(t, g.Done(), "Done")
	if !fdtest.ListensStill(copied) {
		t.Error("the old process has ended the socket on which the new one may accept")
	}
}
