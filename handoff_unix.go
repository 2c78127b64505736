//go:build unix

package grace

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// errTooManyInFlight: the kernel has as many descriptors in flight for this
// user as it allows (unix(7), ETOOMANYREFS); nothing was sent, and later it may go.
var errTooManyInFlight error = unix.ETOOMANYREFS

// controlPair makes the control channel: old's end, and the descriptor of new's.
func controlPair() (*net.UnixConn, int, error) {
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
	conn, err := unixConn(fds[0])
	if err != nil {
		unix.Close(fds[1])
		return nil, -1, err
	}
	return conn, fds[1], nil
}

// unixConn makes a *net.UnixConn of fd, which it takes.
func unixConn(fd int) (*net.UnixConn, error) {
	f := os.NewFile(uintptr(fd), "control")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	uc, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("descriptor %d is a %s socket, not a unix socket", fd, c.LocalAddr().Network())
	}
	return uc, nil
}

func growSendBuffer(c *net.UnixConn, size int) {
	if size > 64<<10 {
		c.SetWriteBuffer(2 * size) // more than the limit gives the limit
	}
}

// writeNonblock writes what the kernel takes now of b, and fds with its first byte.
func writeNonblock(c *net.UnixConn, b []byte, fds []int) (n int, err error) {
	rc, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	werr := rc.Write(func(fd uintptr) bool {
		for n < len(b) {
			var m int
			m, err = unix.SendmsgN(int(fd), b[n:], oob, nil, 0)
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

// writeFrame waits until all is written.
func writeFrame(c *net.UnixConn, b []byte, fds []int) error {
	if len(b) == 0 {
		return nil
	}
	if len(fds) == 0 {
		_, err := c.Write(b)
		return err
	}
	n, _, err := c.WriteMsgUnix(b, unix.UnixRights(fds...), nil)
	if err == nil && n < len(b) {
		_, err = c.Write(b[n:])
	}
	return err
}

// fill reads more of the channel into c.in and c.inFDs.
func (c *channel) fill() error {
	var buf [16 << 10]byte
	var oob [maxFDs*4 + 64]byte
	n, oobn, _, _, err := c.conn.ReadMsgUnix(buf[:], oob[:])
	if err != nil && !errors.Is(err, io.EOF) { // an EOF comes wrapped
		return err
	}
	if n == 0 && oobn == 0 {
		return io.EOF
	}
	c.in = append(c.in, buf[:n]...)
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return os.NewSyscallError("recvmsg", err)
	}
	for i := range msgs {
		fds, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			continue // not descriptors
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
		}
		c.inFDs = append(c.inFDs, batch{len(c.in), fds})
	}
	return nil
}

// hungUp says whether the other end is closed, though it may have written
// something before that is not read yet.
func (c *channel) hungUp() bool {
	rc, err := c.conn.SyscallConn()
	if err != nil {
		return true
	}
	hungUp := false
	err = rc.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd)}}
		n, _ := unix.Poll(p, 0)
		hungUp = n > 0 && p[0].Revents&unix.POLLHUP != 0
	})
	return hungUp || err != nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

var (
	errBrokenPipe error = unix.EPIPE
	errConnReset  error = unix.ECONNRESET
)

// dupFile gives another descriptor for the same open file, to be sent.
func dupFile(f *os.File) []int {
	rc, err := f.SyscallConn()
	if err != nil {
		return nil
	}
	fds := []int(nil)
	rc.Control(func(fd uintptr) {
		if n, err := unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0); err == nil {
			fds = []int{n}
		}
	})
	return fds
}
