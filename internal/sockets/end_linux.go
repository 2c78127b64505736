package sockets

import "golang.org/x/sys/unix"

// end ends the socket of a listener for all that have it: at the last stop this is
// not the only process that does. A new one that was starting is killed, and not
// yet gone; a child of the program has a copy of every descriptor from its fork
// until its execve is through, which a disk can hold up for ever; and what a script
// leaves behind that starts new by exec has those of the hand-over. While one lives,
// a listener that is only closed here would take connections that nobody serves,
// and keep its address from the next start.
//
// shutdown(2) of a listening socket for reading is the end of it on Linux. One of
// TCP is no listener any more (inet_shutdown in net/ipv4/af_inet.c); one of a unix
// Socket refuses connections (unix_stream_connect in net/unix/af_unix.c). Its name
// stays taken until the last copy is closed, though, which counts where that is an
// abstract one.
func (sock *Socket) end() {
	sock.Control(func(fd uintptr) { unix.Shutdown(int(fd), unix.SHUT_RD) })
}
