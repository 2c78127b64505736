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
// They are taken in this order; one that is held is never waited for by the goroutine
// that owns the state of the process for longer than a few assignments, but for the two
// calls that say otherwise.
//
//	Listener.reopening   closing and opening a socket, which may wait for a disk
//	Set.mu               which sockets there are, and whether they are open
//	Listener.mu          the socket below, and what is given to be accepted
//	gate's own           see package gate; a function given to Watch must not take Set.mu
//
//	Track.mu             all of a connection but what is set before it is given out
//	Mover.mu             what is on its way; taken after Track.mu was released
//	live.mu              the list of connections; a Track's is not held meanwhile
package sockets
