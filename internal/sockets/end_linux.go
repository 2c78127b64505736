package sockets

import "golang.org/x/sys/unix"

// end ends the socket of a listener for all processes that have it: at the last
// stop there may be others. A new process that was starting is killed, and not
// gone yet; a child of the program has a copy of every descriptor from its fork
// until its execve is through, which a disk can hold up for ever; and what is
// left of a script that starts the new process by exec has the descriptors of the
// hand-over. While one of them lives, a listener that is only closed here would
// take connections that no process serves, and keep its address from the next
// start.
//
// shutdown(2) of a listening socket for reading ends it on Linux. A TCP socket is
// no listener any more (inet_shutdown in net/ipv4/af_inet.c); a unix socket
// refuses connections (unix_stream_connect in net/unix/af_unix.c). The name of a
// unix socket stays taken until the last copy is closed, though, which matters
// for an abstract one.
func (sock *Socket) end() {
	sock.Control(func(fd uintptr) { unix.Shutdown(int(fd), unix.SHUT_RD) })
}
