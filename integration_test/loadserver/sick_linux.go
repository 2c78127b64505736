package main

import (
	"net"
	"os"
	"syscall"
)

func stopSelf() { syscall.Kill(os.Getpid(), syscall.SIGSTOP) }

// shorten sets the length of the queue of ln.
func shorten(ln net.Listener, length int) error {
	sc, ok := ln.(syscall.Conn)
	if !ok || length == 0 {
		return nil
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return err
	}
	if cerr := raw.Control(func(n uintptr) { err = syscall.Listen(int(n), length) }); cerr != nil {
		return cerr
	}
	return err
}
