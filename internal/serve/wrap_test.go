//go:build unix

package serve

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/sockets"
	"github.com/julofinance/grace/v3/internal/testing/wait"
)

// A headerListener stands for those of the PROXY protocol: the address of a
// connection is in its first bytes, and RemoteAddr waits for them.
type headerListener struct{ net.Listener }

type headerConn struct {
	net.Conn
	once *sync.Once
}

func (l headerListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return headerConn{c, new(sync.Once)}, nil
}

func (c headerConn) RemoteAddr() net.Addr {
	c.once.Do(func() { io.ReadFull(c.Conn, make([]byte, 1)) })
	return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 1}
}

// serveWrapped serves behind such a listener, and gives how to connect.
func serveWrapped(t *testing.T, opts ...setting) (*solo, func() net.Conn) {
	t.Helper()
	u, ln := newProcess(t, opts...)
	execute := u.HTTP(&http.Server{Handler: http.NotFoundHandler()}, headerListener{ln})
	u.run(t, execute)
	return u, func() net.Conn {
		t.Helper()
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(wait.Limit))
		return c
	}
}

func askWrapped(t *testing.T, c net.Conn) {
	t.Helper()
	io.WriteString(c, "xGET / HTTP/1.1\r\nHost: test\r\n\r\n")
	if _, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil {
		t.Errorf("no answer: %v", err)
	}
}

// TestSilentClientOfWrapper: a client that says nothing keeps no other waiting.
func TestSilentClientOfWrapper(t *testing.T) {
	u, dial := serveWrapped(t, cutsOffAfter(0))
	dial()
	askWrapped(t, dial())
	u.askStop()
	wait.For(t, u.Done(), "Done")
}

// TestIdleBehindWrapper: an idle connection whose wrapper hides its address has
// IdleGrace, not all of DrainTimeout.
func TestIdleBehindWrapper(t *testing.T) {
	u, dial := serveWrapped(t, cutsOffAfter(time.Hour), idle(10*time.Millisecond))
	askWrapped(t, dial())
	u.askStop()
	wait.For(t, u.Done(), "Done")
}

// TestHijackedBehindWrapper: a WebSocket whose wrapper hides both of its
// addresses is known to be the server's no more, and its owner is told of the
// end when nothing else is left, not when DrainTimeout is up.
func TestHijackedBehindWrapper(t *testing.T) {
	u, ln := newProcess(t, cutsOffAfter(time.Hour), idle(10*time.Millisecond))
	hijacked := make(chan net.Conn, 1)
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
		}
		hijacked <- c
	})}
	goodbye := make(chan struct{})
	srv.RegisterOnShutdown(func() { close(goodbye) })
	execute := u.HTTP(srv, headerListener{ln})
	u.run(t, execute)
	client, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	io.WriteString(client, "xGET / HTTP/1.1\r\nHost: test\r\n\r\n")
	socket := wait.For(t, hijacked, "the request")
	if conns := &u.httpServer(srv).conns; conns.open(false) != 0 || conns.open(true) != 1 {
		t.Errorf("%d connections are the server's, of %d; want 0 of 1", conns.open(false), conns.open(true))
	}
	u.askStop()
	wait.For(t, goodbye, "the goodbye")
	select {
	case <-u.Done():
		t.Error("the process ends before its WebSocket")
	default:
	}
	socket.Close()
	wait.For(t, u.Done(), "Done")
}

// A keepingConn keeps deadlines, as wrappers of the PROXY protocol do, to set
// them once its header is read.
type keepingConn struct {
	net.Conn
	kept time.Time
}

func (c *keepingConn) SetReadDeadline(d time.Time) error {
	c.kept = d
	return c.Conn.SetReadDeadline(d)
}

// TestTrackBelow: the search leaves no trace.
func TestTrackBelow(t *testing.T) {
	u, ln := newProcess(t)
	t.Cleanup(u.askStop)
	if err := u.Ready(); err != nil {
		t.Fatal(err)
	}
	_, c := connected(t, ln)
	before := time.Now().Add(time.Hour)
	c.SetReadDeadline(before)
	keeping := &keepingConn{Conn: c}
	if got, want := sockets.TrackBelow(headerConn{Conn: keeping}), sockets.TrackOf(c); got != want {
		t.Fatalf("found %p, want %p", got, want)
	}
	if !keeping.kept.IsZero() {
		t.Errorf("the wrapper has kept the deadline %v", keeping.kept)
	}
	if want := sockets.TrackOf(c).Want; !want.Equal(before) {
		t.Errorf("the read deadline is %v, want %v", want, before)
	}
	theirs, _ := net.Pipe()
	if got := sockets.TrackBelow(theirs); got != nil {
		t.Errorf("found %p below a pipe", got)
	}
}
