package sockets

import (
	"testing"
	"unsafe"
)

// What a connection may take: six pointers and 64 bytes for its Track, one pointer
// more with the connection of package net. On 64 bit these are 120 bytes, for which
// the runtime allocates 128: two lines of the processor's cache.
const (
	pointer     = unsafe.Sizeof(uintptr(0))
	mostOfTrack = 6*pointer + 64
	mostOfConn  = mostOfTrack + pointer
)

func TestTrackSize(t *testing.T) {
	for _, c := range []struct {
		name      string
		got, most uintptr
	}{
		{"Track", unsafe.Sizeof(Track{}), mostOfTrack},
		{"TCPConn", unsafe.Sizeof(TCPConn{}), mostOfConn},
		{"UnixConn", unsafe.Sizeof(UnixConn{}), mostOfConn},
	} {
		if c.got > c.most {
			t.Errorf("a %s has %d bytes, want at most %d", c.name, c.got, c.most)
		}
	}
}
