package grace

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"sync"

	"github.com/oklog/run"
)

// How the servers that were given to an Upgrader are run: by Run, or as the actors of a
// run.Group of the program's own.

// Run runs every server that was given to u by [Upgrader.HTTP], [Upgrader.HTTPS] or
// [Upgrader.Server], also one that comes while it runs, and calls [Upgrader.Ready]. It
// returns nil when this process has handed over, or the service was told to stop, and
// what it had begun is finished: the program should exit then. The end of ctx stops the
// service as SIGTERM does.
//
// If [Exclusive] state could not be had back after an upgrade that has failed, the error
// is ErrExclusive. If a server ends by itself, this process gives up ([Upgrader.Abort]), the other servers
// end, and Run returns that server's result. Other errors are those of Ready.
//
// A program that has more to run than servers uses [Upgrader.Actor] and a run.Group.
func (u *Upgrader) Run(ctx context.Context) error {
	err := error(nil)
	if ctx == nil {
		err = errors.New("grace: Run: the context is nil; use context.Background()")
	} else {
		defer context.AfterFunc(ctx, func() { u.happen(evStop{}) })()
		var g run.Group
		var failed error
		g.Add(u.Actor())
		g.Add(u.runServers(&failed))
		err = cmp.Or(g.Run(), failed)
	}
	u.Abort()
	<-u.done
	return cmp.Or(err, u.lost)
}

// Actor gives the Upgrader itself as an actor, to be handed to a
// [github.com/oklog/run.Group]. execute calls Ready and returns nil when Done
// is closed, so that the group's other actors end then; its error is Ready's.
// interrupt is [Upgrader.Abort].
func (u *Upgrader) Actor() (execute func() error, interrupt func(error)) {
	return func() error {
		if err := u.Ready(); err != nil {
			select {
			case <-u.ctx.Done(): // stopped before it was ready: no error
				<-u.done
				return nil
			default:
			}
			return err
		}
		<-u.done
		return u.lost
	}, func(error) { u.Abort() }
}

// runServers gives an actor that runs all servers. When one ends by itself the others
// are ended as well, and its error goes to failed: since the Upgrader's own actor may
// return before all of them have.
func (u *Upgrader) runServers(failed *error) (execute func() error, interrupt func(error)) {
	end := make(chan struct{})
	return func() error {
		var running sync.WaitGroup
		defer running.Wait()
		ended := make(chan error, 1) // has room for the first, which alone counts
		for n := 0; ; {
			servers, more := u.runs.since(n)
			n += len(servers)
			for _, execute := range servers {
				running.Go(func() {
					err := execute()
					select {
					case ended <- err:
					default:
					}
				})
			}
			select {
			case err := <-ended:
				select {
				case <-end: // all end
				default:
					*failed = err
				}
				u.Abort()
				return nil
			case <-more:
			case <-end:
				return nil
			}
		}
	}, func(error) { u.Abort(); close(end) }
}

// runs are the servers that were given to an Upgrader, as the functions that run them.
type runs struct {
	mu   sync.Mutex
	all  []func() error // guarded by mu
	more chan struct{}  // closed when one is added; nil: not asked for yet; guarded by mu
}

// add returns a function that runs a server once: a second call waits for the end
// of the first, and has its result.
func (r *runs) add(execute func() error) func() error {
	execute = sync.OnceValue(execute)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, execute)
	if r.more != nil {
		close(r.more)
		r.more = nil
	}
	return execute
}

// since returns all but the first n, and a channel that is closed when there are
// more.
func (r *runs) since(n int) (servers []func() error, more <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.more == nil {
		r.more = make(chan struct{})
	}
	return r.all[n:len(r.all):len(r.all)], r.more
}

// actor makes an actor of what runs a server.
func (u *Upgrader) actor(execute func() error) (func() error, func(error)) {
	run := func() error {
		err := execute()
		// The program may not say why it ends, or not before all is drained.
		if err != nil && !errors.Is(err, http.ErrServerClosed) {
			u.log.Error("grace: a server has ended with an error; this process gives up", "err", err)
		}
		return err
	}
	return u.runs.add(run), func(error) { u.Abort() }
}
