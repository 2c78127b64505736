package sockets

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// Whether a new process accepts at all is seen by the kernel's queue of a listening
// socket, which both processes have: see queue_linux.go. A queue that is not full proves
// nothing, since perhaps no client comes, and a program may have its reasons to accept
// later. A full one turns clients away.

// fullFor is for how long at least a queue must be full: a machine that is merely busy
// may take that long until a new process has accepted something.
const fullFor = 2 * time.Second

// fullLooks is how often a full queue is looked at in that time.
const fullLooks = 40

// WatchQueues waits for d. If the queue of one of socks is full then, it waits for as long
// again, at least for fullFor, and the error says that nothing was accepted from the queue
// meanwhile. It returns sooner if something was, or with the error of ctx.
func WatchQueues(ctx context.Context, socks []*Socket, d time.Duration) error {
	if err := sleep(ctx, d); err != nil || d == 0 {
		return err
	}
	full := fullQueues(socks)
	defer func() { closeQueues(full) }()
	more := max(d, fullFor)
	for range fullLooks {
		if len(full) == 0 {
			return nil
		}
		if err := sleep(ctx, more/fullLooks); err != nil {
			return err
		}
		full = slices.DeleteFunc(full, func(q *queue) bool {
			moves := !q.stands()
			if moves {
				q.close()
			}
			return moves
		})
	}
	if len(full) == 0 {
		return nil
	}
	q := full[0]
	return fmt.Errorf("it has accepted no connection on %s %s for %v, while the queue there was full, with %d", q.network, q.addr, more, q.length)
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func fullQueues(socks []*Socket) (full []*queue) {
	for _, sock := range socks {
		if q := fullQueue(sock); q != nil {
			full = append(full, q)
		}
	}
	return full
}

func closeQueues(all []*queue) {
	for _, q := range all {
		q.close()
	}
}
