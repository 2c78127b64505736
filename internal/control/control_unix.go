//go:build unix

package control

import (
	"cmp"
	"errors"
	"io"
	"net"
	"os"
	"syscall"

	"github.com/julofinance/grace/v3/internal/fd"
	"golang.org/x/sys/unix"
)

// Pair makes a control channel: this process's end, and the descriptor of the other
// process's end, both close-on-exec.
func Pair() (*net.UnixConn, int, error) {
	syscall.ForkLock.RLock()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err == nil {
		unix.CloseOnExec(fds[0])
		unix.CloseOnExec(fds[1])
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return nil, -1, os.NewSyscallError("socketpair", err)
	}
	conn, err := fd.NewUnixConn(fds[0])
	if err != nil {
		unix.Close(fds[1])
		return nil, -1, err
	}
	return conn, fds[1], nil
}

func growSendBuffer(c *net.UnixConn, size int) {
	if size > 64<<10 {
		c.SetWriteBuffer(2 * size) // more than the limit gives the limit
	}
}

// writeNonblock writes what the kernel takes of b now, and fds with its first byte.
func writeNonblock(c *net.UnixConn, b []byte, fds []int) (n int, err error) {
	rc, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	werr := rc.Write(func(sock uintptr) bool {
		for n < len(b) {
			var m int
			m, err = unix.SendmsgN(int(sock), b[n:], oob, nil, 0)
			if err == unix.EINTR {
				continue
			}
			if err == unix.EAGAIN {
				err = nil
				return true
			}
			if err != nil {
				return true
			}
			n += m
			oob = nil
		}
		return true
	})
	return n, cmp.Or(err, werr)
}

// writeSome waits until something is written, unless there is an error.
func writeSome(c *net.UnixConn, b []byte, fds []int) (n int, err error) {
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	n, _, err = c.WriteMsgUnix(b, oob, nil)
	return n, err
}

// passes reports whether what the kernel refuses now with err may work in a moment: the
// kernel is short of something, or the user has too many descriptors in flight. So it is
// with every error but those that say that one of the ends is gone: whether the other
// process is dead is proven in other ways.
func passes(err error) bool {
	var errno unix.Errno
	if !errors.As(err, &errno) {
		return false
	}
	switch errno {
	case unix.EPIPE, unix.ECONNRESET, unix.ENOTCONN, unix.ESHUTDOWN, unix.EBADF, unix.ENOTSOCK, unix.EINVAL, unix.EFAULT:
		return false
	}
	return true
}

// readable reports whether receive returns at once.
func (c *Channel) readable() (ok bool) {
	if raw, err := c.conn.SyscallConn(); err == nil {
		raw.Control(func(n uintptr) { ok = fd.IsReadable(int(n)) })
	}
	return ok
}

// receive reads once into c.in and c.inFDs.
func (c *Channel) receive() error {
	if c.buf == nil {
		c.buf = make([]byte, smallRead)
	}
	var oob [MaxFDs*4 + 64]byte
	n, oobn, _, _, err := c.conn.ReadMsgUnix(c.buf, oob[:])
	if err != nil && !errors.Is(err, io.EOF) { // an EOF comes wrapped
		return err
	}
	if n == 0 && oobn == 0 {
		return io.EOF
	}
	c.in = append(c.in, c.buf[:n]...)
	clear(c.buf[:n])
	if n == len(c.buf) && n < largeRead {
		c.buf = make([]byte, largeRead)
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return os.NewSyscallError("recvmsg", err)
	}
	for i := range msgs {
		fds, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			continue // not descriptors
		}
		for _, n := range fds {
			unix.CloseOnExec(n)
		}
		c.inFDs = append(c.inFDs, batch{len(c.in), fds})
	}
	return nil
}

// HungUp reports whether the other end is closed. What it has written before may still be
// there to be read.
func (c *Channel) HungUp() bool {
	rc, err := c.conn.SyscallConn()
	if err != nil {
		return true
	}
	hungUp := false
	err = rc.Control(func(n uintptr) { hungUp = fd.IsHungUp(int(n)) })
	return hungUp || err != nil
}
