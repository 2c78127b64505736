//go:build unix

package gracehttp

import (
	"os"
	"syscall"
)

var upgradeSignals = []os.Signal{syscall.SIGUSR2}
