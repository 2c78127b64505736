package tableflip

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// A socketListener is what grace's listeners have besides net.Listener.
type socketListener interface {
	Listener
	SetDeadline(time.Time) error
	File() (*os.File, error)
}

// A listener is one of grace's with the life that tableflip gives it: Close ends
// Accept and leaves the socket to the Upgrader, and nothing but Close ends Accept,
// neither an upgrade nor Stop.
type listener struct {
	socketListener
	once   sync.Once
	closed chan struct{}

	mu     sync.Mutex // guards ending
	ending bool       // the Upgrader ends, and needs a closed one no more
}

func newListener(ln net.Listener) (*listener, error) {
	l, ok := ln.(socketListener)
	if !ok {
		ln.Close()
		return nil, fmt.Errorf("tableflip: a %T has no descriptor", ln)
	}
	return &listener{socketListener: l, closed: make(chan struct{})}, nil
}

// Accept waits until the process is ready, and again once a new process has taken
// over. It returns net.ErrClosed after Close only.
func (l *listener) Accept() (net.Conn, error) {
	if !l.isClosed() {
		c, err := l.socketListener.Accept()
		if err == nil {
			return c, nil
		}
		if !l.isClosed() && !errors.Is(err, net.ErrClosed) {
			return nil, err
		}
		<-l.closed
	}
	return nil, &net.OpError{Op: "accept", Net: l.Addr().Network(), Addr: l.Addr(), Err: net.ErrClosed}
}

func (l *listener) isClosed() bool {
	select {
	case <-l.closed:
		return true
	default:
		return false
	}
}

// Close ends Accept. The socket stays open, and is handed over at an upgrade.
func (l *listener) Close() error {
	err := net.ErrClosed
	l.once.Do(func() {
		err = nil
		close(l.closed)
		l.settle(false)
	})
	return err
}

// settle lets a closed listener accept nothing, or end if nothing needs it.
func (l *listener) settle(ending bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ending = l.ending || ending
	switch {
	case !l.isClosed():
	case l.ending:
		l.socketListener.Close()
	default:
		l.socketListener.SetDeadline(time.Unix(1, 0))
	}
}

var _ syscall.Conn = (*listener)(nil)
