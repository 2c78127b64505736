package fdtest

import "golang.org/x/sys/unix"

// ListensStill reports whether a TCP socket listens. No connection is made to it.
func ListensStill(fd int) bool {
	on, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	return on == 1 && err == nil
}
