package grace

import (
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"strings"
	"testing"
)

// Nothing that is missing is a panic: the actor says so.
func TestNilServers(t *testing.T) {
	u := &Upgrader{}
	ln := closedListener{}
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
	ours := &TCPConn{}
	if err := Move(tls.Server(ours, nil), nil); !errors.Is(err, ErrNotMoved) {
		t.Errorf("got %v, want ErrNotMoved", err)
	}
}
