package grace

import (
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// keepAliveOf reads the keep-alives of a listening socket, which are those of its
// connections unless somebody sets others.
func keepAliveOf(l acceptor) (c net.KeepAliveConfig) {
	raw, err := l.SyscallConn()
	if err != nil {
		return c
	}
	raw.Control(func(fd uintptr) {
		get := func(level, name int) int {
			v, _ := unix.GetsockoptInt(int(fd), level, name)
			return v
		}
		c.Enable = get(unix.SOL_SOCKET, unix.SO_KEEPALIVE) != 0
		c.Idle = time.Duration(get(unix.IPPROTO_TCP, unix.TCP_KEEPIDLE)) * time.Second
		c.Interval = time.Duration(get(unix.IPPROTO_TCP, unix.TCP_KEEPINTVL)) * time.Second
		c.Count = get(unix.IPPROTO_TCP, unix.TCP_KEEPCNT)
	})
	return c
}
