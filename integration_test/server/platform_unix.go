//go:build unix

package main

import (
	"os"
	"os/signal"
	"syscall"
)

var resumeSignal os.Signal = syscall.SIGUSR1

// reapAll waits for all children, so that the process that has started them can't.
func reapAll() {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGCHLD)
	go func() {
		for range c {
			for {
				if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); err != syscall.EINTR && pid <= 0 {
					break
				}
			}
		}
	}()
}
