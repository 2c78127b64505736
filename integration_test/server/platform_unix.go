//go:build unix

package main

import (
	"os"
	"syscall"
)

var resumeSignal os.Signal = syscall.SIGUSR1
