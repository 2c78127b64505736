// Package sockets has the sockets of a process and their connections: it finds or opens
// them, stops and begins accepting without closing anything, knows each accepted
// connection, and moves those that are idle to another process.
//
// It knows no Upgrader, no http.Server and no master: what a process may do at which
// moment is told to it.
//
//   - sockets.go, match.go, open.go: the Set of all sockets of a process, which of the
//     inherited ones is meant by an address, and how one is opened
//   - socket.go, endpath.go, end_linux.go, paths_unix.go, mend.go: the life of one, with
//     its file if it is a unix socket, its end, and what opens it anew
//   - listener.go, packet.go: what a program gets, a net.Listener or a net.PacketConn
//     behind a gate
//   - track.go, conn.go, tcpconn.go, unixconn.go, close.go, deadline.go, idle.go, first.go, live.go:
//     a Track, which is below each accepted connection and sees when it may be moved,
//     and all of a listener's
//   - tlsconn.go: TLS over a connection that moves
//   - move.go, hold.go, message.go, receive.go, prelude.go, mark.go: how connections move to another process,
//     and how they begin there
//   - probe.go, queue.go: a connection that the old process gives to the new one to see
//     whether it serves, and whether it accepts at all
//
// # Locks
//
// They are taken in this order. The goroutine that owns the state of the process takes none
// of the first group, which are held while a disk, or the start of a process, is waited for.
// The others are held for a few assignments, or for system calls that do not block; but
// acceptRest holds Listener.mu for up to 100 milliseconds, and Cut holds Track.mu while it
// closes the connection.
//
//	Listener.reopening   closing and opening a socket
//	packet.reopening     the same of a socket of packets
//	Socket.fileMu        the file of a unix socket
//	Socket.Closing       the descriptor, and the entry of the manifest. WithFDs takes those
//	                     of all sockets, in the order of the Set, and holds them while the
//	                     new process is started; all else takes one
//
//	Set.mu               which sockets there are, and whether they are open
//	Listener.mu          the socket below, and what is given to be accepted
//	live.mu              the list of connections
//	Socket.mu            how the descriptor is reached
//	gate's own           see package gate; a function given to Watch must take none of the
//	                     above but live.mu
//
// With a reopening held all of them may be taken; with Socket.Closing, only Socket.mu and
// the gate's; with Set.mu or Listener.mu, none of the first group. With live.mu, Socket.mu
// or the gate's no other is taken.
//
//	Track.mu             all of a connection but what is set before it is given out; that
//	                     of the TLS above it is taken before, never after
//	Mover.mu             what is on its way; taken after Track.mu was released
//	Receiver.mu          what the old process has offered
//
// With one of these no other is taken, and none of them with one of the groups above.
package sockets
