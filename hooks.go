package grace

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"
)

// callHook calls a function of the program that answers whether all is well. If
// it panics the answer is no. The panic must not end the process that serves.
//
// Functions that do the program's work, such as Serve and Shutdown of a [Server],
// are not called by it: their state after a panic is unknown, and a process that
// ends is replaced, while one that hangs is not.
func (u *Upgrader) callHook(ctx context.Context, name string, hook func(context.Context) error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%s has panicked: %v", name, p)
			u.log.Error("grace: a function that was given as an option has panicked", "option", name, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
		}
	}()
	return hook(ctx)
}

// hookGrace is how long a function of the program's may take to return, and tell what it
// was doing, when its context has ended.
const hookGrace = time.Second

// errDeaf says that a function of the program's was left behind.
var errDeaf = errors.New("does not heed its context")

// callBounded is callHook for a function that may not heed its context, which ends by
// limit. Such a one is left behind: it must keep the process neither from serving on nor
// from ending. returned is called when it has returned, however late. In the error the
// function is called as subject says.
func (u *Upgrader) callBounded(ctx context.Context, name, subject string, limit time.Duration, hook func(context.Context) error, returned func()) error {
	result := make(chan error, 1)
	go func() {
		err := fmt.Errorf("%s has ended its goroutine", subject)
		defer func() {
			returned()
			result <- err
		}()
		err = u.callHook(ctx, name, hook)
	}()
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
	}
	grace := time.NewTimer(hookGrace)
	defer grace.Stop()
	select {
	case err := <-result:
		return err
	case <-grace.C:
		return fmt.Errorf("%s has not returned within %v, and %w", subject, limit, errDeaf)
	}
}
