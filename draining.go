package grace

import (
	"context"

	"github.com/julofinance/grace/v3/internal/serve"
)

// How the program's own code hears that this process is on its way out.

// Draining returns a channel that is closed when this process begins to drain: a new
// process has taken over, and its probation is over, or the service was told to stop. It is
// for what would not end by itself, or must not go on beside the new process: long
// streams, queue consumers, timers. For a request's handler there is the function
// [Draining].
//
// A drain after an upgrade can be called off: the new process dies, and this one serves on.
// Then it is as if the drain had not been, and Draining returns another channel, which is
// open. The former one stays closed: what it has ended was told to end. So a loop that goes
// on after a roll back calls Draining anew each time around.
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
