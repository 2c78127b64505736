//go:build !linux

package sockets

// What frees a thread from a system call that blocks is for Linux: see there.

func (sock *Socket) unblock() bool { return false }
func (sock *Socket) nonblock()     {}
func (t *Track) unblock()          {}
