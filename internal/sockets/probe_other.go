//go:build !unix

package sockets

import (
	"errors"
	"net"
)

func unixPair(string) (near, far net.Conn, err error) { return nil, nil, errors.ErrUnsupported }
