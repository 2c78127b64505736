package grace

import (
	"net"
	"os"

	"golang.org/x/sys/unix"
)

func writeWithFile(conn *net.UnixConn, text string, file *os.File) error {
	rc, err := file.SyscallConn()
	if err != nil {
		return err
	}
	cerr := rc.Control(func(fd uintptr) {
		_, _, err = conn.WriteMsgUnix([]byte(text), unix.UnixRights(int(fd)), nil)
	})
	if cerr != nil {
		return cerr
	}
	return err
}

// monotonicUsec is the clock that systemd compares with the moment of its request.
func monotonicUsec() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0
	}
	return ts.Nano() / 1000
}
