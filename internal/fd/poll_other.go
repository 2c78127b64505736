//go:build unix && !linux

package fd

import "golang.org/x/sys/unix"

// ShutDown are the events of Poll for a socket that was shut down for reading.
const ShutDown = unix.POLLHUP
