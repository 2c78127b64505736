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

// TestSilentClientOfWrapper: a client that says nothing keeps no other waiting.
func TestSilentClientOfWrapper(t *testing.T) {
	u, err := newUpgrader(system{}, []Option{Signals(), Logger(nil), DrainTimeout(0)})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := u.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	execute, _ := u.HTTP(&http.Server{Handler: http.NotFoundHandler()}, headerListener{ln})
	go execute()
	if err := u.Ready(); err != nil {
		t.Fatal(err)
	}
	dial := func() net.Conn {
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(3 * time.Second))
		return c
	}
	dial()
	c := dial()
	io.WriteString(c, "xGET / HTTP/1.1\r\nHost: test\r\n\r\n")
	if _, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil {
		t.Errorf("the second client got no response while the first was silent: %v", err)
	}
	u.Stop()
	receive(t, u.Done(), "Done")
}

// TestIdleBehindWrapper: an idle connection whose wrapper hides its address has IdleGrace, not all of DrainTimeout.
func TestIdleBehindWrapper(t *testing.T) {
	u, err := newUpgrader(system{}, []Option{Signals(), Logger(nil), DrainTimeout(time.Hour), IdleGrace(10 * time.Millisecond)})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := u.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	execute, _ := u.HTTP(&http.Server{Handler: http.NotFoundHandler()}, headerListener{ln})
	go execute()
	if err := u.Ready(); err != nil {
		t.Fatal(err)
	}
	dial := func() net.Conn {
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(3 * time.Second))
		return c
	}

	c := dial()
	io.WriteString(c, "xGET / HTTP/1.1\r\nHost: test\r\n\r\n")
	if _, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil {
		t.Errorf("the second client got no response while the first was silent: %v", err)
	}
	u.Stop()
	receive(t, u.Done(), "Done")
}
