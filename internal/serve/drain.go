package serve

import (
	"context"
	"sync"
	"time"

	"github.com/julofinance/grace/v3/internal/sockets"
)

// A drainer is a server that finishes what it has begun.
type Drainer interface {
	// Drain returns when nothing is left, when d.TimeUp is closed and it has cut
	// off what was, or when d.CalledOff is closed: then it serves on as before.
	Drain(d *Drain) Report
	// Resume lets it serve as before, if it does not already: a drain was called
	// off, maybe when this server had nothing left and only another one had.
	Resume()
	// Offer is called while it drains, if the new process takes more than before.
	Offer(m *sockets.Mover)
	// End ends the server for good; what is left is cut off.
	End()
}

// queues makes the sockets a drainer: what is queued in the kernel is accepted to
// the end. The servers drain the connections, and close has ended the listeners
// before.
type queues struct{ socks *sockets.Set }

func (q queues) Drain(d *Drain) Report {
	q.socks.Drain(d.ctx, d.cut)
	return Report{}
}

func (q queues) Offer(*sockets.Mover) {}
func (q queues) Resume()              {}
func (q queues) End()                 {}

// A drainReport counts what became of a server's connections.
type Report struct {
	Finished int // ended by themselves, or when they were idle
	Waited   int // were hijacked, and ended by themselves
	Cut      int // still there when the time was up
}

// A drain is one run of all drainers.
type Drain struct {
	Mover  *sockets.Mover // nil if there is no successor
	rest   time.Time      // until when a client may keep a connection that can't move, if it sends nothing; see LetRest
	ctx    context.Context
	cancel context.CancelFunc // calls the drain off: a roll back
	cut    chan struct{}      // closed when the time is up
	once   sync.Once
	begun  time.Time
	Report Report
	mu     sync.Mutex // held by Offer and Resume

	timing sync.Mutex // guards the following
	limit  *time.Timer
}

func NewDrain(m *sockets.Mover) *Drain {
	d := &Drain{Mover: m, cut: make(chan struct{}), begun: time.Now()}
	d.ctx, d.cancel = context.WithCancel(context.Background())
	return d
}

// LetRest lets connections that can't move wait for one more request, and say with its
// answer that it is the last, almost as long as a drain of this limit may last: a new
// process serves, so that nothing but this process waits for them. The rest of the
// time is for the answers.
func (d *Drain) LetRest(limit time.Duration) {
	d.rest = d.begun.Add(limit - min(limit/10, time.Second))
}

func (d *Drain) Run(servers []Drainer, limit time.Duration) {
	d.Limit(limit)
	defer d.endLimit()
	var mu sync.Mutex // guards d.Report
	var wg sync.WaitGroup
	for _, s := range servers {
		wg.Go(func() {
			r := s.Drain(d)
			mu.Lock()
			defer mu.Unlock()
			d.Report.Finished += r.Finished
			d.Report.Waited += r.Waited
			d.Report.Cut += r.Cut
		})
	}
	wg.Wait()
}

// Limit sets when what is left is cut off: in limit from now, in place of what was set
// before.
func (d *Drain) Limit(limit time.Duration) {
	d.endLimit()
	d.timing.Lock()
	defer d.timing.Unlock()
	d.limit = time.AfterFunc(limit, d.Hurry)
}

func (d *Drain) endLimit() {
	d.timing.Lock()
	defer d.timing.Unlock()
	if d.limit != nil {
		d.limit.Stop()
	}
}

// offer tells the servers that the new process takes more than before. Like
// resume, it must not be called by the goroutine that owns the state. It does
// nothing after the drain was called off.
func (d *Drain) Offer(servers []Drainer) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.cancelled() {
		for _, s := range servers {
			s.Offer(d.Mover)
		}
	}
}

// back is Resume for a server that has seen that the drain was called off. An Offer that
// is under way comes to its end before.
func (d *Drain) back(s Drainer) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s.Resume()
}

func (d *Drain) Resume(servers []Drainer) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range servers {
		s.Resume()
	}
}

// Cancel calls the drain off.
func (d *Drain) Cancel() { d.cancel() }

// CalledOff is closed when the drain was called off.
func (d *Drain) CalledOff() <-chan struct{} { return d.ctx.Done() }

// TimeUp is closed when what is left is to be cut off.
func (d *Drain) TimeUp() <-chan struct{} { return d.cut }

// Hurry cuts off what is left.
func (d *Drain) Hurry() { d.once.Do(func() { close(d.cut) }) }

func (d *Drain) cancelled() bool { return d.ctx.Err() != nil }

// Took is how long it has run by now.
func (d *Drain) Took() time.Duration { return time.Since(d.begun) }

// Moved counts the connections that were moved, and those that have ended here.
func (d *Drain) Moved() (moved, finished int) {
	if d.Mover != nil {
		moved = d.Mover.Count()
	}
	return moved, max(0, d.Report.Finished-moved)
}
