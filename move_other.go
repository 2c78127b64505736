//go:build !linux

package grace

import "net"

const canMove = false

func descriptor(net.Conn) (int, error)        { return -1, ErrNotSupported }
func receiveConn(int, bool) (net.Conn, error) { return nil, ErrNotSupported }
