//go:build unix && !linux

package grace

import "net"

// peerName names the process at the other end, where the platform can tell.
func peerName(net.Conn) string { return "" }
