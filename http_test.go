//go:build unix

package grace

import (
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/julofinance/grace/v3/internal/sockets"
)

// Nothing that is missing is a panic: the actor says so.
func TestNilServers(t *testing.T) {
	u := &Upgrader{log: slog.New(slog.DiscardHandler)}
	ln := struct{ net.Listener }{}
	actor := func(execute func() error, _ func(error)) func() error { return execute }
	for name, execute := range map[string]func() error{
		"HTTP without server":     actor(u.HTTP(nil, ln)),
		"HTTP without listener":   actor(u.HTTP(&http.Server{}, nil)),
		"HTTPS without listener":  actor(u.HTTPS(&http.Server{}, nil, "", "")),
		"Server without listener": actor(u.Server(Server{Serve: func(net.Listener) error { return nil }})),
		"Server without Serve":    actor(u.Server(Server{Listener: ln})),
	} {
		if err := execute(); err == nil || !strings.Contains(err.Error(), "is nil") {
			t.Errorf("%s: got %v, want an error that says what is nil", name, err)
		}
	}
}

// What wraps a connection, such as TLS, may know more than its descriptor.
func TestMoveOfWrappedConnection(t *testing.T) {
	ours := &sockets.TCPConn{}
	if err := Move(tls.Server(ours, nil), nil); !errors.Is(err, ErrNotMoved) {
		t.Errorf("got %v, want ErrNotMoved", err)
	}
}

// TestWhatIsPromised: connections of HTTP/1 are moved to a server that speaks it.
func TestWhatIsPromised(t *testing.T) {
	protocols := func(http1, http2, unencrypted bool) *http.Protocols {
		p := new(http.Protocols)
		p.SetHTTP1(http1)
		p.SetHTTP2(http2)
		p.SetUnencryptedHTTP2(unencrypted)
		return p
	}
	for _, c := range []struct {
		protocols *http.Protocols
		want      string
	}{
		{nil, sockets.ProtocolHTTP1},
		{protocols(true, false, false), sockets.ProtocolHTTP1},
		{protocols(true, true, true), sockets.ProtocolHTTP1},
		{protocols(false, false, true), ""},
		{protocols(false, true, false), ""},
	} {
		u, ln := newSolo(t)
		u.HTTP(&http.Server{Protocols: c.protocols}, ln)
		if got := ln.(*sockets.Listener).Protocol(); got != c.want {
			t.Errorf("with the protocols %v it takes %q, want %q", c.protocols, got, c.want)
		}
		u.askStop()
		receive(t, u.Done(), "Done")
	}
}
