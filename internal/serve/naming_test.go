//go:build unix

package serve

import (
	"context"
	"net"
	"net/http"
	"testing"
)

// TestConnContextAllocatesNothing: connections share the context in which they begin. It
// names the user's server, and the copy that serves once that was shut down.
func TestConnContextAllocatesNothing(t *testing.T) {
	u, ln := newProcess(t)
	defer ln.Close()
	user := &http.Server{}
	u.HTTP(user, ln)
	s := u.All()[1].(*httpServer)
	begin := func() context.Context {
		return context.WithValue(context.Background(), http.ServerContextKey, s.srv) // as net/http does
	}
	one, other := begin(), begin()
	var c net.Conn = &net.TCPConn{}
	if n := testing.AllocsPerRun(100, func() { s.contextOf(one, c) }); n != 0 {
		t.Errorf("%v allocations for each connection", n)
	}
	for _, ctx := range []context.Context{one, other, one} {
		got := s.contextOf(ctx, c)
		if got.Value(http.ServerContextKey) != user {
			t.Error("the context does not name the user's server")
		}
		if got == s.contextOf(begin(), c) {
			t.Error("two calls of Serve share a context")
		}
	}
	s.userShut.Store(true)
	if s.contextOf(one, c).Value(http.ServerContextKey) != s.srv {
		t.Error("the context names the user's server, which was shut down")
	}
}
