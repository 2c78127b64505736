//go:build !unix

package proc

import (
	"net"
	"os"
)

// Where sockets can't be handed over, nothing asks for what follows.

func ParentLife(*net.UnixConn, int) Life { return nil }
func WhenGone(int, func())               {}
func IsAlive(int) bool                   { return false }
func WasKilled(*os.ProcessState) bool    { return false }
func SetBy(string, string) int           { return 0 }
