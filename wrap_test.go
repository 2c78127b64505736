//go:build unix

package grace

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"
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
func serveWrapped(t *testing.T, opts ...Option) (*Upgrader, func() net.Conn) {
	t.Helper()
	u, ln := newSolo(t, opts...)
	execute, _ := u.HTTP(&http.Server{Handler: http.NotFoundHandler()}, headerListener{ln})
	go execute()
	if err := u.Ready(); err != nil {
		t.Fatal(err)
	}
	return u, func() net.Conn {
		t.Helper()
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(limit))
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
	u, dial := serveWrapped(t, DrainTimeout(0))
	dial()
	askWrapped(t, dial())
	u.Stop()
	receive(t, u.Done(), "Done")
}

// TestIdleBehindWrapper: an idle connection whose wrapper hides its address has
// IdleGrace, not all of DrainTimeout.
func TestIdleBehindWrapper(t *testing.T) {
	u, dial := serveWrapped(t, DrainTimeout(time.Hour), IdleGrace(10*time.Millisecond))
	askWrapped(t, dial())
	u.Stop()
	receive(t, u.Done(), "Done")
}
