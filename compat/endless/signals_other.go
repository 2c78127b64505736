//go:build !unix

package endless

import (
	"os"
	"syscall"
)

var hookableSignals = []os.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM}

func isHammer(os.Signal) bool { return false }
