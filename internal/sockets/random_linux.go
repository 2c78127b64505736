package sockets

import (
	"crypto/rand"

	"golang.org/x/sys/unix"
)

// readRandom fills b, which is short. crypto/rand sets a timer for its first read,
// which wakes a thread: this is called while each process starts.
func readRandom(b []byte) {
	if n, err := unix.Getrandom(b, 0); err != nil || n < len(b) { // getrandom(2): all of so few, or EINTR, or a sandbox
		rand.Read(b) // never fails
	}
}
