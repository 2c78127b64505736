//go:build 386 || arm || mips || mipsle

package sockets

import "unsafe"

// TestTrackSize for go vet, where no test runs: a constant that is less than
// nothing does not compile.
const (
	_ = mostOfTrack - unsafe.Sizeof(Track{})
	_ = mostOfConn - unsafe.Sizeof(TCPConn{})
	_ = mostOfConn - unsafe.Sizeof(UnixConn{})
	_ = mostOfTLSConn - unsafe.Sizeof(TLSConn{})
	_ = mostOfDetour - unsafe.Sizeof(Detour{})
)
