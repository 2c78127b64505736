//go:build unix

package sockets

import (
	"net"
	"os"
	"syscall"

	"github.com/julofinance/grace/v3/internal/fd"
	"golang.org/x/sys/unix"
)

// unixPair makes a pair of unix sockets, close-on-exec.
func unixPair(network string) (near, far net.Conn, err error) {
	kind := unix.SOCK_STREAM
	if network == "unixpacket" {
		kind = unix.SOCK_SEQPACKET
	}
	syscall.ForkLock.RLock()
	pair, err := unix.Socketpair(unix.AF_UNIX, kind, 0)
	if err == nil {
		unix.CloseOnExec(pair[0])
		unix.CloseOnExec(pair[1])
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	if near, err = fd.NewConn(pair[0]); err != nil {
		unix.Close(pair[1])
		return nil, nil, err
	}
	if far, err = fd.NewConn(pair[1]); err != nil {
		near.Close()
		return nil, nil, err
	}
	return near, far, nil
}
