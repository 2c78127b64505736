// Package grace lets a server replace itself while it serves.
//
// A program that calls
//
//	grace.Serve(":9000", nil, grace.PIDFile("app.pid"))
//
// in place of http.ListenAndServe is upgraded by
//
//	kill -USR2 $(cat app.pid)
//
// The running process (the old one) starts the binary again, as it lies on disk
// now (the new one), and hands it every socket. When the new process reports that
// it is ready, it accepts and the old one stops accepting. The old process stands
// by for a while, then drains and exits. No request is lost, and no other program
// is needed.
//
// # The names that matter
//
//   - [Serve]: all in one line; [ListenAndServe] for http.Servers of one's own
//   - [PIDFile]: the option that names the process that serves
//   - [HealthCheck]: the option that rolls back a new version that starts and does not work
//   - [New] makes the Upgrader of the process, with such options
//   - [Upgrader.Listen]: a socket, handed over or opened
//   - [Upgrader.HTTP], [Upgrader.Server]: a server that is drained, and its connections moved
//   - [Upgrader.Run] runs them all, until SIGTERM or the end of its context
//   - [Upgrader.Upgrade] does what SIGUSR2 does
//
// # What holds
//
// At any moment a ready process accepts on every socket. At most two
// generations run, and at most one of them is not ready; older ones may finish
// their streams besides, see [Linger]. A new process that
// fails in whatever way before it is ready is killed, and the old one goes on as
// if nothing had happened. If the new one dies later, before the old one is gone,
// or lingers, the upgrade is rolled back: the old process accepts again. If the old process
// dies, a new process that exists carries on.
//
// # Connections
//
// Shutdown of net/http closes connections that are idle at that moment, while
// their clients may be sending: that is where other ways to restart lose
// requests. Here an idle plaintext HTTP/1 connection is moved: its descriptor
// goes to the new process, which serves it as one of its own, and its client
// notices nothing. A busy one moves when its response is out. With [MoveTLS] those
// of HTTP/1 over TLS 1.3 move as well. All others are told to close, by
// "Connection: close" or, of HTTP/2, GOAWAY; hijacked ones are waited for. See
// [Upgrader.HTTP], and [Upgrader.Server] for servers that are not net/http's.
//
// # Embedding
//
// [Serve] and [ListenAndServe] are built from [New], [Upgrader.Listen],
// [Upgrader.HTTP] and [Upgrader.Run], and so can any daemon be:
//
//	u, err := grace.New(grace.PIDFile("app.pid"))
//	…
//	ln, err := u.Listen("tcp", ":9000")
//	…
//	u.HTTP(&http.Server{Handler: h}, ln)
//	err = u.Run(ctx)
//
// A program with a run.Group of its own adds u.Actor() and u.HTTP(srv, ln) to it.
//
// # Environment
//
// On unix systems the import of this package takes variables out of the environment, before
// main begins, so that nothing that the program starts has them too: GRACE_HANDOVER, which
// is the library's own; LISTEN_PID, LISTEN_FDS, LISTEN_FDNAMES, WATCHDOG_USEC and
// WATCHDOG_PID of systemd; and SERVER_STARTER_PORT, SOCKETMASTER_PID and EINHORN_* of
// programs that pass sockets to those that they start. [New] takes GRACE_PIDFILE.
//
// # Platforms
//
// Upgrades work on Linux, and are built for other unix systems; connections
// are moved on Linux only. On Windows and elsewhere Serve and Listen work as
// plain ones, and [Upgrader.Upgrade] returns [ErrNotSupported].
package grace
