//go:build !unix

package tableflip

import (
	"os"
	"syscall"
)

func dup(syscall.Conn, string) (*os.File, error) { return nil, ErrNotSupported }
