//go:build !linux

package grace

import "net"

// keepAliveOf: what the listening socket has is left as net sets it.
func keepAliveOf(acceptor) net.KeepAliveConfig {
	return net.KeepAliveConfig{Idle: -1, Interval: -1, Count: -1}
}
