//go:build linux

// Inflight has as many descriptors on their way over unix sockets as its argument
// says, until its standard input ends: the kernel counts those of all processes of
// a user (unix(7), ETOOMANYREFS).
package main

import (
	"fmt"
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "inflight:", err)
		os.Exit(1)
	}
}

func run() error {
	want, err := strconv.Atoi(os.Args[1])
	if err != nil {
		return err
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	for sent := 0; sent < want; {
		fds := make([]int, min(253, want-sent)) // all are descriptor 0
		if err := unix.Sendmsg(pair[0], []byte{0}, unix.UnixRights(fds...), nil, 0); err != nil {
			return err
		}
		sent += len(fds)
	}
	fmt.Printf("in flight %d pid=%d\n", want, os.Getpid())
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}
