package grace

import (
	"context"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/julofinance/grace/v3/internal/sockets"
)

// warnIfNeverGone: a program that does not exit after Done keeps the new process
// from being upgraded, since at most two generations run.
func (u *Upgrader) warnIfNeverGone(next int) {
	time.AfterFunc(max(time.Second, u.opt.drainTimeout), func() {
		u.log.Warn("grace: this process has finished, and does not exit; the new process can't be upgraded before", "pid", os.Getpid(), "new", next,
			"do", "see what the program does after Done is closed, or Serve or Run has returned; end this process, by SIGKILL if need be")
	})
}

func (u *Upgrader) allServers() []drainer {
	u.serversMu.Lock()
	defer u.serversMu.Unlock()
	return append([]drainer(nil), u.servers...)
}

// lastServers is allServers, and lets each server that comes later be ended at
// once.
func (u *Upgrader) lastServers() []drainer {
	u.serversMu.Lock()
	u.serversEnded = true
	u.serversMu.Unlock()
	return u.allServers()
}

// addServer adds a server. One that comes when the others were ended is ended as
// well: a stop may come while the program still sets itself up. serversMu is held.
func (u *Upgrader) addServer(s drainer) {
	u.servers = append(u.servers, s)
	if u.serversEnded {
		go s.shutdown()
	}
}

// A drainer is a server that finishes what it has begun.
type drainer interface {
	// Drain returns when nothing is left, when d.cut is closed and it has cut
	// off what was, or when d.ctx has ended: then it serves on as before.
	drain(d *drain) drainReport
	// resume lets it serve as before, if it does not already: a drain was called
	// off, maybe when this server had nothing left and only another one had.
	resume()
	// offer is called while it drains, if the new process takes more than before.
	offer(m *sockets.Mover)
	// shutdown ends the server for good; what is left is cut off.
	shutdown()
}

// queues makes the sockets a drainer: what is queued in the kernel is accepted to
// the end. The servers drain the connections, and close has ended the listeners
// before.
type queues struct{ socks *sockets.Set }

func (q queues) drain(d *drain) drainReport {
	q.socks.Drain(d.ctx, d.cut)
	return drainReport{}
}

func (q queues) offer(*sockets.Mover) {}
func (q queues) resume()              {}
func (q queues) shutdown()            {}

// A drainReport counts what became of a server's connections.
type drainReport struct {
	finished int // ended by themselves, or when they were idle
	waited   int // were hijacked, and ended by themselves
	cut      int // still there when the time was up
}

// A drain is one run of all drainers.
type drain struct {
	mover  *sockets.Mover // nil if there is no successor
	ctx    context.Context
	cancel context.CancelFunc // calls the drain off: a roll back
	cut    chan struct{}      // closed when the time is up
	once   sync.Once
	begun  time.Time
	report drainReport
	mu     sync.Mutex // held by offer and resume
}

func newDrain(m *sockets.Mover) *drain {
	d := &drain{mover: m, cut: make(chan struct{}), begun: time.Now()}
	d.ctx, d.cancel = context.WithCancel(context.Background())
	return d
}

func (d *drain) run(servers []drainer, limit time.Duration) {
	defer time.AfterFunc(limit, d.hurry).Stop()
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, s := range servers {
		wg.Go(func() {
			r := s.drain(d)
			mu.Lock()
			defer mu.Unlock()
			d.report.finished += r.finished
			d.report.waited += r.waited
			d.report.cut += r.cut
		})
	}
	wg.Wait()
}

// offer tells the servers that the new process takes more than before. Like
// resume, it must not be called by the goroutine that owns the state. It does
// nothing after the drain was called off.
func (d *drain) offer(servers []drainer) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.cancelled() {
		for _, s := range servers {
			s.offer(d.mover)
		}
	}
}

func (d *drain) resume(servers []drainer) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range servers {
		s.resume()
	}
}

// hurry cuts off what is left.
func (d *drain) hurry() { d.once.Do(func() { close(d.cut) }) }

func (d *drain) cancelled() bool { return d.ctx.Err() != nil }

func (d *drain) log(log *slog.Logger) {
	moved := 0
	if d.mover != nil {
		moved = d.mover.Count()
	}
	args := []any{"took", time.Since(d.begun), "moved", moved, "finished", max(0, d.report.finished-moved), "waited", d.report.waited, "cut", d.report.cut}
	if d.report.cut > 0 {
		log.Warn("grace: drained; connections were cut off, see DrainTimeout", args...)
		return
	}
	log.Info("grace: drained", args...)
}
