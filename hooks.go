package grace

import (
	"context"
	"fmt"
	"runtime/debug"
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
