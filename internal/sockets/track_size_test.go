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

// What one over TLS that can be moved takes more: a TLSConn, and a Detour. On 64 bit these
// are 32 and 152 bytes, for which the runtime allocates 192: less than 200, which is the
// most that it may be.
const (
	mostOfTLSConn = 4 * pointer
	mostOfDetour  = 12*pointer + 56
)

func TestTrackSize(t *testing.T) {
	for _, c := range []struct {
		name      string
		got, most uintptr
	}{
		{"Track", unsafe.Sizeof(Track{}), mostOfTrack},
		{"TCPConn", unsafe.Sizeof(TCPConn{}), mostOfConn},
		{"UnixConn", unsafe.Sizeof(UnixConn{}), mostOfConn},
		{"TLSConn", unsafe.Sizeof(TLSConn{}), mostOfTLSConn},
		{"Detour", unsafe.Sizeof(Detour{}), mostOfDetour},
	} {
		if c.got > c.most {
			t.Errorf("a %s has %d bytes, want at most %d", c.name, c.got, c.most)
		}
	}
}
