//go:build !linux

package sockets

import (
	"errors"
	"net"
)

const CanMove = false

func markTakenBack(int)                       {}
func isTakenBack(int) bool                    { return false }
func unmark(int)                              {}
func ReceiveConn(int, bool) (net.Conn, error) { return nil, errors.ErrUnsupported }
