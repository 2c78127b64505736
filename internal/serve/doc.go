// Package serve runs servers on the listeners of package sockets, and ends them without
// losing a request: net/http's, and others that are given as functions.
//
// It knows no Upgrader. A Host says what all servers of a process share, and what they
// may do; a Drain, that they are to finish or to move what they have; either is begun,
// called off and hurried from outside.
//
//   - host.go, drain.go: the servers of a process, and one drain of all of them
//   - draining.go: how the program's own code hears of a drain
//   - http.go, httpstate.go, httphooks.go: one http.Server: its drain, and what net/http
//     tells of its connections
//   - door.go, arrivals.go, http2.go, h2c.go: which protocol a connection speaks, and the
//     server that serves those of HTTP/2
//   - httpclone.go, anchor.go: copies of the program's http.Server, and how its own
//     Shutdown and Close reach them
//   - movetls.go: connections over TLS that move
//   - tickets.go: keys of TLS session tickets that outlive the process
//   - goodbye.go: the answer that is the last of a connection
//   - wrapped.go, proof.go, foreign.go: connections that come through another listener's
//     hands, or from nowhere that is known
//   - idlerule.go: whether this version of net/http behaves as moving needs it
//   - other.go, entrance.go: a server that is not net/http's
//   - connset.go: the listeners and the connections that a server drains
//
// # Locks
//
// They are taken in this order. None is held while a server, a peer or a function of the
// program is waited for, but for Drain.mu.
//
//	Drain.mu           held by Offer and Resume, so that they do not overlap
//	Host.mu            which servers there are
//	the user's http.Server's own: Host.mu is held when onShutdown is registered with it,
//	                   before a listener is served for it; its Close, which holds it,
//	                   calls anchorConn.Close
//	httpServer.mu      what one is doing
//	a copy's own:      httpServer.mu is held when addCopy shuts one down
//	otherServer.mu     the state of one that is not net/http's
//	sessionTickets.mu  the keys of one tls.Config
//	connSet.mu         the listeners of a server
//	Host.ticketsMu     the secrets of each address
//	arrivals.mu, door.mu, drainSignal.mu, Drain.timing, oneConn.mu, ticketSecrets.mu: no
//	                   other is taken while they are held
//
// Those of package sockets come after these, but for three. Host.ticketsMu and
// ticketSecrets.mu are taken with Socket.Closing held, for the manifest. connSet.mu is taken
// with Set.mu or Listener.mu held, since check is called when a gate has changed: so with
// connSet.mu only the gate's own lock and that of the list of connections may be taken.
package serve
