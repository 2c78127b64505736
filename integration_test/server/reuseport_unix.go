//go:build unix

package main

import (
	"errors"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

func setReusePort(network, _ string, c syscall.RawConn) error {
	if strings.HasPrefix(network, "unix") {
		return nil
	}
	var err error
	cerr := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
	})
	return errors.Join(cerr, err)
}
