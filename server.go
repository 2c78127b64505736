package grace

import (
	"context"
	"net"

	"github.com/julofinance/grace/v3/internal/serve"
	"github.com/julofinance/grace/v3/internal/sockets"
)

// A Server is one that is not net/http's: gRPC, fasthttp, your own protocol.
// [Upgrader.Server] runs and drains it.
type Server struct {
	// Listener is one that Upgrader.Listen gave, or that wraps one.
	Listener net.Listener

	// Serve serves the listener that it is given until Accept fails: what it is given
	// stands before Listener, which is closed only at the end, since a roll back may
	// need it. Serve is called again if an upgrade is rolled back after Shutdown has
	// closed the listener, or before a Shutdown that still runs does, or after Serve
	// has returned in [Probation], or if a connection that was to be moved comes back
	// then; maybe before the former call returns. It must make a new server where the
	// old one can't serve again, as gRPC's can't.
	Serve func(net.Listener) error

	// Shutdown is called when the process drains and accepts no more: it should
	// make connections end once what they do is done, and may wait for it. Its
	// context ends when the drain's time is up, when all connections are gone,
	// or when the upgrade is rolled back. It may close the listener. Its error
	// is not looked at, and it may be called when Serve never was, and again after
	// Serve was. nil: connections end by themselves, or move.
	Shutdown func(context.Context) error

	// Protocol names what is spoken, if connections may move to a new process
	// that serves the same socket with the same Protocol: see ErrMove and Move.
	// Empty: they stay until they end. "http/1.1" is net/http's.
	Protocol string
}

// Server gives u the server s to run, as [Upgrader.HTTP] does. execute returns nil
// when the process has handed over, or was stopped, and all connections that
// came from the listener are closed or moved; those that are left when
// [DrainTimeout] is up are cut off. Other errors are Serve's.
func (u *Upgrader) Server(s Server) (execute func() error, interrupt func(error)) {
	if s.Listener == nil || s.Serve == nil {
		return u.actor(nilServer("Server"))
	}
	return u.actor(u.host.Other(serve.ForeignServer(s)))
}

// ErrMove is returned by Read on a connection of a [Server] with a Protocol
// when this process wants to be rid of it: the handler calls [Move] with what
// it has read and not used yet, and returns. If it is not at a point where it
// could, it reads on: nothing is lost, and Read says so again after more data. All
// methods of a unix connection that read do the same.
var ErrMove = sockets.ErrMove

// ErrNotMoved is returned by [Move] when the connection stays here.
var ErrNotMoved = sockets.ErrNotMoved

// Move hands the connection c, one accepted from a listener that a [Server]
// with a Protocol serves, over to the new process, together with the bytes that
// were read from it and not used: the new process accepts it from its own
// listener, and reads those first. c is not the caller's any more then, and
// must not be used or closed. At most 32 KiB of unread can go along.
//
// ErrNotMoved means that c stays, as it was, and should be served on: unread is
// too long, say, or the upgrade was rolled back. If the error is ErrStopped too,
// this process ends and no process takes c: the handler may say goodbye and close
// it, or serve on until [DrainTimeout] cuts it off. No Read of c may be in
// progress during the call.
func Move(c net.Conn, unread []byte) error { return sockets.Move(c, unread) }
