//go:build !linux

package pktinfo

import "net"

// Elsewhere the kernel chooses: the options differ from system to system (IP_RECVDSTADDR
// and IP_SENDSRCADDR on the BSDs), and none is tested here.

const controlSize = 0

func enable(*net.UDPConn) family         { return none }
func parse(family, []byte) (local, bool) { return local{}, false }
func (*Control) put(family, local) bool  { return false }
func isBadSource(error) bool             { return false }
