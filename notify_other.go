//go:build !linux

package grace

import (
	"net"
	"os"
)

// systemd is there on Linux only.

func writeWithFile(*net.UnixConn, string, *os.File) error { return ErrNotSupported }
func monotonicUsec() int64                                { return 0 }
