package sdnotify

import (
	"errors"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// writeWithFile sends one datagram with a descriptor. net.UnixConn.WriteMsgUnix refuses
// to on a connected datagram socket.
func writeWithFile(conn *net.UnixConn, text string, file *os.File) error {
	rf, err := file.SyscallConn()
	if err != nil {
		return err
	}
	rc, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	err = rf.Control(func(fd uintptr) {
		err := rc.Write(func(s uintptr) bool {
			for {
				sent = unix.Sendmsg(int(s), []byte(text), unix.UnixRights(int(fd)), nil, 0)
				if sent != unix.EINTR {
					return sent != unix.EAGAIN
				}
			}
		})
		if err != nil {
			sent = err
		}
	})
	return errors.Join(err, sent)
}

// monotonicUsec is the clock that systemd compares with the moment of its request, see
// MONOTONIC_USEC in sd_notify(3).
func monotonicUsec() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0
	}
	return ts.Nano() / 1000
}
