//go:build !linux

package sockets

// end does nothing: elsewhere no call ends a listener for all that have it. On
// FreeBSD shutdown(2) of one only wakes up the threads in accept (soshutdown in
// sys/kern/uipc_socket.c), on macOS it is ENOTCONN.
func (sock *Socket) end() {}
