package load

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// A Count is what became of the requests of one kind.
type Count struct {
	Clients  int
	Answered int            // full and correct answers; of streams: whole streams
	Lost     map[string]int // by reason

	Opened    int // connections
	Same      int // clients that still have their first connection
	Announced int // connections that ended with "Connection: close" in an answer
	Idle      int // connections that the client saw closed while it sent nothing
	Resent    int // pipelined requests sent again, since an answer before theirs said "close"
	Moved     int // answers by another process than the one before them on the same connection

	Slowest time.Duration // the longest wait for an answer
}

// Losses is the sum of Lost.
func (c Count) Losses() (n int) {
	for _, v := range c.Lost {
		n += v
	}
	return n
}

func (c *Count) add(o Count) {
	c.Clients += o.Clients
	c.Answered += o.Answered
	for k, v := range o.Lost {
		c.Lost[k] += v
	}
	c.Opened += o.Opened
	c.Same += o.Same
	c.Announced += o.Announced
	c.Idle += o.Idle
	c.Resent += o.Resent
	c.Moved += o.Moved
	c.Slowest = max(c.Slowest, o.Slowest)
}

// A Loss is one request that got lost.
type Loss struct {
	Kind   Kind
	Reason string
	Err    error
	Pid    int           // of the process that answered before on that connection; 0: none
	At     time.Duration // since the load's start
}

func (l Loss) String() string {
	return fmt.Sprintf("%s after %v: %s: %v (process before: %d)", l.Kind, l.At.Round(time.Millisecond), l.Reason, l.Err, l.Pid)
}

// maxLosses is how many losses are kept one by one; all are counted.
const maxLosses = 50

// A Report is what a load has seen.
type Report struct {
	Kinds  map[Kind]Count
	Losses []Loss // the first ones
	Pids   []int  // of the processes that answered, in the order of their first answer
	Took   time.Duration
}

// Snapshot says how everything has gone until now.
func (r *Run) Snapshot() Report {
	r.mu.Lock()
	defer r.mu.Unlock()
	rep := Report{Kinds: map[Kind]Count{}, Losses: slices.Clone(r.losses), Pids: slices.Clone(r.pids), Took: r.took}
	if rep.Took == 0 {
		rep.Took = time.Since(r.begun)
	}
	for k, c := range r.counts {
		copied := *c
		copied.Lost = maps.Clone(c.Lost)
		rep.Kinds[k] = copied
	}
	return rep
}

// Total is the sum over all kinds.
func (r Report) Total() Count {
	sum := Count{Lost: map[string]int{}}
	for _, c := range r.Kinds {
		sum.add(c)
	}
	return sum
}

// Lost is how many requests, streams and connects were lost.
func (r Report) Lost() int { return r.Total().Losses() }

// String is a table, a line a kind, with the first losses below.
func (r Report) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%-13s %7s %8s %5s %6s %5s %6s %5s %6s %6s %8s\n",
		"kind", "clients", "answered", "lost", "opened", "same", "closed", "idle", "resent", "moved", "slowest")
	line := func(name string, c Count) {
		fmt.Fprintf(&b, "%-13s %7d %8d %5d %6d %5d %6d %5d %6d %6d %8s", name, c.Clients, c.Answered, c.Losses(),
			c.Opened, c.Same, c.Announced, c.Idle, c.Resent, c.Moved, c.Slowest.Round(time.Millisecond))
		for _, reason := range slices.Sorted(maps.Keys(c.Lost)) {
			fmt.Fprintf(&b, "  %s: %d", reason, c.Lost[reason])
		}
		b.WriteByte('\n')
	}
	for _, k := range slices.Concat(Kinds, SecureKinds) {
		if c, ok := r.Kinds[k]; ok {
			line(string(k), c)
		}
	}
	line("all", r.Total())
	fmt.Fprintf(&b, "in %v, answered by %d processes\n", r.Took.Round(time.Millisecond), len(r.Pids))
	for _, l := range r.Losses {
		fmt.Fprintf(&b, "lost: %v\n", l)
	}
	return b.String()
}
