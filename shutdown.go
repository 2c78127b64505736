package grace

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// How a program ends its service, or its own part of it.

// Shutdown stops the service, as SIGTERM does, and waits: this process stops accepting,
// finishes what it has begun, and closes Done. What is left when ctx ends is cut off, and
// so it is when [DrainTimeout] is up: the error is a [*CutError] then, with the context's
// error if that has ended. After that Shutdown waits for no more than 5 seconds.
//
// A second call waits as well, and cuts off at the end of its own context; it does
// nothing else. Nor does a signal that comes besides, as where the program's context is
// one of [os/signal.NotifyContext] and this process handles the same signal; a second
// signal cuts off.
//
// If this process has handed over less than 10 seconds ago, the new one is told to stop as
// well, and later only if a supervisor takes this process for the service. If a new
// process is starting, it is killed. When all servers have ended because this process has
// handed over, and after Done, Shutdown does nothing.
func (u *Upgrader) Shutdown(ctx context.Context) error {
	if ctx == nil {
		return errors.New("grace: Shutdown: the context is nil; use context.Background()")
	}
	u.happen(evStop{})
	var why error
	select {
	case <-u.done:
	case <-ctx.Done():
		select {
		case <-u.done: // both
		default:
			why = ctx.Err()
			u.Close()
		}
	}
	if n := int(u.cut.Load()); n > 0 || why != nil {
		return &CutError{Count: n, Err: why}
	}
	return nil
}

// Close stops the service at once: what this process has begun is cut off. The new
// process, if this one has handed over, is told to do the same, under the conditions of
// [Upgrader.Shutdown]. Close returns when Done is closed, or after 5 seconds; its error is
// nil. A second call does nothing.
//
// A program that gives up on an error, where another process is to serve on, calls
// [Upgrader.Abort].
func (u *Upgrader) Close() error {
	u.happen(evStop{stopRequest{now: true}})
	patience := time.NewTimer(endPatience)
	defer patience.Stop()
	select {
	case <-u.done:
	case <-patience.C:
	}
	return nil
}

// Abort ends this process's part, and not the service, for a program that gives up on an
// error: an old process that still stands by takes over again, and a new one goes on, also
// one that is starting. Where there is neither, Abort is a Shutdown. It returns at once;
// Done is closed when this process has finished what it had begun. It does nothing after
// Shutdown, Close, Abort or Done.
func (u *Upgrader) Abort() { u.happen(evStop{stopRequest{leave: true}}) }

// A CutError is returned by [Upgrader.Shutdown] if its context has ended, or if
// connections were cut off.
type CutError struct {
	// Count is how many connections were cut off.
	Count int
	// Err is the context's error, or nil: DrainTimeout was up before, or a second
	// signal or Close has cut them off.
	Err error
}

// Error gives the cause and the number.
func (e *CutError) Error() string {
	why := e.Err
	if why == nil {
		why = errors.New("the time to drain was over")
	}
	return fmt.Sprintf("grace: Shutdown: %v; %d connections were cut off", why, e.Count)
}

// Unwrap gives the context's error to errors.Is and errors.As.
func (e *CutError) Unwrap() error { return e.Err }
