//go:build !unix

package fd

import (
	"errors"
	"net"
	"os"
	"syscall"
)

// Where descriptors can't be handed over, nothing asks for what follows.

// ErrLocked is the error of a lock that another open file has.
var ErrLocked = errors.New("locked")

func CloseAll([]int)                            {}
func Dup(syscall.Conn) (int, error)             { return -1, errors.ErrUnsupported }
func NewListener(int) (Listener, error)         { return nil, errors.ErrUnsupported }
func NewPacketConn(int) (net.PacketConn, error) { return nil, errors.ErrUnsupported }
func NewConn(int) (net.Conn, error)             { return nil, errors.ErrUnsupported }
func NewUnixConn(int) (*net.UnixConn, error)    { return nil, errors.ErrUnsupported }
func NewFile(int, string) *os.File              { return nil }
func OpenLocked(path string) (*os.File, error)  { return nil, errors.ErrUnsupported }
func TryLockShared(*os.File) error              { return errors.ErrUnsupported }
func Unlock(*os.File) error                     { return errors.ErrUnsupported }

// ErrBrokenPipe is that of a peer that reads no more.
var ErrBrokenPipe = errors.New("broken pipe")
