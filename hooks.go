package grace

import (
	"context"
	"fmt"
	"runtime/debug"
)

// callHook calls a function that the program has given to be asked whether all is
// well. Its panic is an answer too: no. It must not end the process that serves.
//
// Not so with what does the program's work, such as Serve and Shutdown of a
// [Server]: what its state is after a panic nobody knows, and a process that ends
// is replaced, while one that hangs is not.
func (u *Upgrader) callHook(ctx context.Context, name string, hook func(context.Context) error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%s has panicked: %v", name, p)
			u.log.Error("grace: a function that was given as an option has panicked", "option", name, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
		}
	}()
	return hook(ctx)
}
