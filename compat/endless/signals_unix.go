//go:build unix

package endless

import (
	"os"
	"syscall"
)

var hookableSignals = []os.Signal{
	syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGINT, syscall.SIGTERM, syscall.SIGTSTP,
}

func isHammer(s os.Signal) bool { return s == syscall.SIGUSR2 }
