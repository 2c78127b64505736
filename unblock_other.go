//go:build !linux

package grace

// What frees a thread from a system call that blocks is for Linux: see there.

func (sock *socket) unblock() bool { return false }
func (sock *socket) nonblock()     {}
func (t *track) unblock()          {}
