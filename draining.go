package grace

import (
	"context"
	"io"
	"net/http"

	"github.com/julofinance/grace/v3/internal/serve"
)

// How the program's own code hears that this process is on its way out.

// Draining returns a channel that is closed when this process begins to drain: a new
// process has taken over, and its probation is over, or the service was told to stop. It is
// for what would not end by itself, or must not go on beside the new process: long
// streams, queue consumers, timers. For a request's handler there is the function
// [Draining]. With [Exclusive] state it is closed before the new process takes over: when
// this one stops accepting, to release it.
//
// A drain after an upgrade can be called off: the new process dies, and this one serves on.
// Then it is as if the drain had not been, and Draining returns another channel, which is
// open. The former one stays closed: what it has ended was told to end. So a loop that goes
// on after a roll back calls Draining anew each time around; [EventRolledBack] says when.
//
// The new process does not know when that channel is closed here: it is alone when
// [Upgrader.WaitForParent] returns.
func (u *Upgrader) Draining() <-chan struct{} { return u.host.Draining() }

// Draining is [Upgrader.Draining] for handlers: ctx is the context of a request that
// [Upgrader.HTTP], [Upgrader.HTTPS] or [Serve] serves, or is derived from it. A handler of
// a long stream that sees the channel closed says goodbye to its client, in the words of
// its protocol, and returns; one that goes on is waited for until [DrainTimeout] is up.
//
// For other contexts Draining returns nil, a channel that is never closed.
func Draining(ctx context.Context) <-chan struct{} {
	if h := serve.HostOf(ctx); h != nil {
		return h.Draining()
	}
	return nil
}

// Readiness is a handler for a readiness probe, http.HandleFunc("/readyz", grace.Readiness):
// it says 200 while the service serves, during an upgrade as well, and 503 from the moment
// at which this process is told to stop. With [LameDuck] it goes on accepting then, while the
// load balancer notices. On a server that is not run by this package it says 500.
func Readiness(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	switch h := serve.HostOf(r.Context()); {
	case h == nil:
		http.Error(w, "grace.Readiness: this server was not given to an Upgrader", http.StatusInternalServerError)
	case h.Stopping.Err() != nil:
		http.Error(w, "stopping", http.StatusServiceUnavailable)
	default:
		io.WriteString(w, "ready\n")
	}
}
