package sockets

import (
	"crypto/rand"

	"golang.org/x/sys/unix"
)

// readRandom fills b, which is short. crypto/rand is avoided, since this is
// called while each process starts: its first read sets a timer, which wakes a
// thread.
func readRandom(b []byte) {
	if n, err := unix.Getrandom(b, 0); err != nil || n < len(b) { // getrandom(2): it gives so few bytes at once, or fails with EINTR or in a sandbox
		rand.Read(b) // never fails
	}
}
