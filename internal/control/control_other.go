//go:build !unix

package control

import (
	"errors"
	"net"
)

// Where sockets can't be handed over there is no control channel.

func Pair() (*net.UnixConn, int, error)                       { return nil, -1, errors.ErrUnsupported }
func growSendBuffer(*net.UnixConn, int)                       {}
func writeNonblock(*net.UnixConn, []byte, []int) (int, error) { return 0, errors.ErrUnsupported }
func writeSome(*net.UnixConn, []byte, []int) (int, error)     { return 0, errors.ErrUnsupported }
func passes(error) bool                                       { return false }
func (c *Channel) receive() error                             { return errors.ErrUnsupported }
func (c *Channel) readable() bool                             { return false }
func (c *Channel) HungUp() bool                               { return false }
