//go:build !linux

package sdnotify

import (
	"errors"
	"net"
	"os"
)

// systemd runs on Linux only.

func writeWithFile(*net.UnixConn, string, *os.File) error { return errors.ErrUnsupported }
func monotonicUsec() int64                                { return 0 }
