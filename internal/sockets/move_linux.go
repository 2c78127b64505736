package sockets

import (
	"fmt"
	"net"
	"time"

	"github.com/julofinance/grace/v3/internal/fd"
	"golang.org/x/sys/unix"
)

// CanMove is true only here: what this file and the kernel do for a move was only
// tried on Linux.
const CanMove = true

// takenBack marks a connection that the new process was offered, and the old one
// has taken back. Both have the same socket, so the new process sees the mark at
// once, whatever becomes of the channel between them and of the old process: if
// that dies, the new one serves what it was offered, and must not serve a
// connection from which a part of a request was read. The mark is a receive
// timeout, which has no meaning for a socket that does not block. It is small
// enough for the clock ticks of a kernel of 32 bit.
const takenBack = 765432 * time.Second

func markTakenBack(n int) {
	tv := unix.NsecToTimeval(int64(takenBack))
	unix.SetsockoptTimeval(n, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
}

func isTakenBack(n int) bool {
	tv := unix.NsecToTimeval(int64(takenBack))
	got, err := unix.GetsockoptTimeval(n, unix.SOL_SOCKET, unix.SO_RCVTIMEO)
	return err == nil && *got == tv
}

// unmark takes the mark away, before the connection is offered to another process.
func unmark(n int) {
	if isTakenBack(n) {
		unix.SetsockoptTimeval(n, unix.SOL_SOCKET, unix.SO_RCVTIMEO, new(unix.Timeval))
	}
}

// ReceiveConn makes a connection of n, and closes n. fd.NewConn sets TCP_NODELAY
// and keep-alives as for a new connection; if custom, the server in the old
// process may have set them otherwise, and they are put back.
func ReceiveConn(n int, custom bool) (net.Conn, error) {
	var kept optionValues
	if custom {
		kept = KeepOptions(n)
	}
	c, err := fd.NewConn(n)
	if err != nil {
		return nil, err
	}
	switch c.(type) {
	case *net.TCPConn, *net.UnixConn:
	default:
		c.Close()
		return nil, fmt.Errorf("grace: a %T was moved", c)
	}
	if c.RemoteAddr() == nil { // reset on the way: the old process sees why, and closes it
		c.Close()
		return nil, unix.ENOTCONN
	}
	if custom { // n is closed by now, and may be another file already
		n, err := fd.Of(c)
		if err != nil {
			c.Close()
			return nil, err
		}
		kept.restore(n)
	}
	return c, nil
}

var tcpOptions = [...]struct{ level, name int }{
	{unix.IPPROTO_TCP, unix.TCP_NODELAY},
	{unix.SOL_SOCKET, unix.SO_KEEPALIVE},
	{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE},
	{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL},
	{unix.IPPROTO_TCP, unix.TCP_KEEPCNT},
}

type optionValues [len(tcpOptions)]int

func KeepOptions(n int) (kept optionValues) {
	for i, o := range tcpOptions {
		v, err := unix.GetsockoptInt(n, o.level, o.name)
		if err != nil {
			v = -1
		}
		kept[i] = v
		if i == 0 && err != nil { // not TCP
			for i := range kept {
				kept[i] = -1
			}
			break
		}
	}
	return kept
}

func (kept optionValues) restore(n int) {
	for i, o := range tcpOptions {
		if kept[i] < 0 {
			continue
		}
		if v, err := unix.GetsockoptInt(n, o.level, o.name); err == nil && v != kept[i] {
			unix.SetsockoptInt(n, o.level, o.name, kept[i])
		}
	}
}
