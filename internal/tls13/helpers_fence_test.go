package tls13

import (
	"net"
	"sync/atomic"
	"time"
)

// A fence stands between a *tls.Conn and the connection below, as the sockets of a server
// do. Once it is shut, it lets nothing through any more that the *tls.Conn does: no record,
// no deadline, no Close.
type fence struct {
	net.Conn
	shut atomic.Bool
}

func (f *fence) Read(p []byte) (int, error) {
	if f.shut.Load() {
		return 0, net.ErrClosed
	}
	return f.Conn.Read(p)
}

func (f *fence) Write(p []byte) (int, error) {
	if f.shut.Load() {
		return 0, net.ErrClosed
	}
	return f.Conn.Write(p)
}

func (f *fence) Close() error {
	if f.shut.Load() {
		return nil
	}
	return f.Conn.Close()
}

func (f *fence) SetDeadline(t time.Time) error      { return f.set(f.Conn.SetDeadline, t) }
func (f *fence) SetReadDeadline(t time.Time) error  { return f.set(f.Conn.SetReadDeadline, t) }
func (f *fence) SetWriteDeadline(t time.Time) error { return f.set(f.Conn.SetWriteDeadline, t) }

func (f *fence) set(set func(time.Time) error, t time.Time) error {
	if f.shut.Load() {
		return nil
	}
	return set(t)
}
