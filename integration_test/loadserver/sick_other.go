//go:build !linux

package main

import (
	"errors"
	"net"
)

func stopSelf() {}

func shorten(_ net.Listener, length int) error {
	if length == 0 {
		return nil
	}
	return errors.ErrUnsupported
}
