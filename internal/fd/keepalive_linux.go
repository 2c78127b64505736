package fd

import (
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// KeepAlive reads the keep-alives of a listening socket. Its connections inherit them from
// it, see tcp(7).
func KeepAlive(l syscall.Conn) (c net.KeepAliveConfig) {
	raw, err := l.SyscallConn()
	if err != nil {
		return c
	}
	raw.Control(func(n uintptr) {
		get := func(level, name int) int {
			v, _ := unix.GetsockoptInt(int(n), level, name)
			return v
		}
		c.Enable = get(unix.SOL_SOCKET, unix.SO_KEEPALIVE) != 0
		c.Idle = time.Duration(get(unix.IPPROTO_TCP, unix.TCP_KEEPIDLE)) * time.Second
		c.Interval = time.Duration(get(unix.IPPROTO_TCP, unix.TCP_KEEPINTVL)) * time.Second
		c.Count = get(unix.IPPROTO_TCP, unix.TCP_KEEPCNT)
	})
	return c
}
