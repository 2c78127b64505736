package grace

import (
	"fmt"
	"net"
	"net/http"
)

// HTTP gives u a server to run: srv, on ln. [Upgrader.Run] runs it. A program with a
// [github.com/oklog/run.Group] of its own hands it what HTTP returns, g.Add(u.HTTP(srv, ln)),
// beside [Upgrader.Actor]. execute serves until this process has handed over and
// drained, or has stopped, and returns nil then; what ends the server by itself is its
// error. It runs once: a second call waits, and returns the same. interrupt is
// [Upgrader.Abort].
//
// ln is one that [Upgrader.Listen] gave, or that wraps one. srv may serve
// several, with a call of HTTP for each. HTTP sets srv's Handler, ConnState,
// ConnContext and BaseContext to its own, which call the former ones; all of srv
// must be set before, SetKeepAlivesEnabled as well, and it must not be served otherwise.
// Connections are served by copies of srv; those of HTTP/2 by srv itself if TLSNextProto is
// set, by http2.ConfigureServer, say. srv.Shutdown and srv.Close end all of them, unless srv
// speaks no HTTP/1, and execute returns [net/http.ErrServerClosed].
//
// The drain after an upgrade: a plaintext HTTP/1 connection that srv has from
// our listener itself, unwrapped, is moved to the new process when it is idle,
// if a plaintext server of HTTP serves that socket there. Its client notices
// nothing, and srv's timeouts count on as if it had stayed; ConnState says closed
// here and new there. Others are finished:
// HTTP/1 responses say "Connection: close", HTTP/2 connections get GOAWAY, an
// idle connection is left open for [IdleGrace] before it is closed, one over TLS
// longer, and a hijacked one is waited for. [DrainTimeout] cuts off the rest, unless the
// process lingers: see [Linger].
//
// What was registered with RegisterOnShutdown is called when the drain begins, as by
// Shutdown, or, if srv itself serves HTTP/2, when those clients know that they are to go
// away. That is once: if the upgrade is rolled back after all, a later drain does not call
// it again. A handler that is to hear of that one too has [Draining].
func (u *Upgrader) HTTP(srv *http.Server, ln net.Listener) (execute func() error, interrupt func(error)) {
	if srv == nil || ln == nil {
		return u.actor(nilServer("HTTP"))
	}
	return u.actor(u.host.HTTP(srv, ln))
}

// HTTPS is [Upgrader.HTTP] over TLS; the files and srv.TLSConfig are used as by
// [net/http.Server.ServeTLS]. Session tickets are good in the new process as well: their
// keys are handed over and rotate, unless srv.TLSConfig has keys of its own, WrapSession,
// UnwrapSession or SessionTicketsDisabled; or verifies client certificates in a way that a
// resumed session would get around, see docs/tls.md.
//
// With [MoveTLS], connections over TLS 1.3 that speak HTTP/1 are moved as plaintext ones of
// HTTP are. In the new process such a connection is no *tls.Conn; it has ConnectionState and
// NetConn.
func (u *Upgrader) HTTPS(srv *http.Server, ln net.Listener, certFile, keyFile string) (execute func() error, interrupt func(error)) {
	if srv == nil || ln == nil {
		return u.actor(nilServer("HTTPS"))
	}
	return u.actor(u.host.HTTPS(srv, ln, certFile, keyFile))
}

// nilServer runs a server that was not given.
func nilServer(method string) func() error {
	return func() error { return fmt.Errorf("grace: %s: the server or the listener is nil", method) }
}
