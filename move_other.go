//go:build !linux

package grace

import "net"

const canMove = false

func markTakenBack(int)                       {}
func isTakenBack(int) bool                    { return false }
func unmark(int)                              {}
func receiveConn(int, bool) (net.Conn, error) { return nil, ErrNotSupported }
