//go:build !linux

package fd

import (
	"net"
	"syscall"
)

// KeepAlive returns what makes net leave the keep-alives as they are: the listening
// socket's can't be read here.
func KeepAlive(syscall.Conn) net.KeepAliveConfig {
	return net.KeepAliveConfig{Idle: -1, Interval: -1, Count: -1}
}
