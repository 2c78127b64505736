//go:build linux

package main

import (
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/julofinance/grace/v3/bench/server"
)

// An upgrade, in microseconds since the signal.
type upgrade struct {
	main    float64 // the new process has come to main
	serving float64 // it says that it can answer
	answer  float64 // a client that asks from then on has its first answer
	failed  int     // how often it had none before
}

// upgrade upgrades p, and waits until the old process is gone. Nothing asks the
// server before the new process says that it can answer: the machine is idle
// but for the upgrade, and what else the benchmark lets run.
func (b *benchmark) upgrade(p *process) (u upgrade, err error) {
	begun := server.Now()
	if err := syscall.Kill(p.pid, syscall.SIGUSR2); err != nil {
		return u, err
	}
	g, err := p.serving(b.ctx)
	if err != nil {
		return u, err
	}
	// The old process may accept for a moment still, and drop what it has accepted.
	for pid := 0; pid != g.pid; {
		if pid, err = askOnce(p.addr); err != nil {
			u.failed++
		}
		if server.Now()-begun > int64(patience) {
			return u, fmt.Errorf("%s: no answer of process %d: %w", p.kind, g.pid, err)
		}
	}
	answered := server.Now()
	u.main, u.serving, u.answer = micros(g.begun-begun), micros(g.serving-begun), micros(answered-begun)
	return u, p.alone(b.ctx)
}

// An upgradeResult has what was measured of one kind of server, turn by turn.
type upgradeResult struct {
	floors, mains, servings, answers []float64
	failed                           int
}

// upgrades measures the time from the signal to the first answer, and the floors.
func (b *benchmark) upgrades(turns int, loaded bool) (map[string]*upgradeResult, error) {
	processes := map[string]*process{}
	results := map[string]*upgradeResult{}
	for _, kind := range kinds[1:] {
		// The old process stands by at the first answer, as it does with the default, 1 s.
		p, err := b.start(kind, server.ProbationVariable+"=50ms")
		if err != nil {
			return nil, err
		}
		defer p.end()
		processes[kind], results[kind] = p, &upgradeResult{}
	}
	for turn := range turns + 1 {
		for i := range kinds[1:] {
			kind := kinds[1+(i+turn)%2]
			end := func() error { return nil }
			if loaded {
				end = b.load(processes[kind])
			}
			floor, err := b.floor(kind)
			var u upgrade
			if err == nil {
				u, err = b.upgrade(processes[kind])
			}
			if lerr := end(); err == nil {
				err = lerr
			}
			if err != nil {
				return nil, err
			}
			if turn == 0 { // its signals, files and caches are warm from here on
				continue
			}
			r := results[kind]
			r.floors, r.mains = append(r.floors, floor), append(r.mains, u.main)
			r.servings, r.answers = append(r.servings, u.serving), append(r.answers, u.answer)
			r.failed += u.failed
		}
	}
	return results, nil
}

// load lets clients make requests until end is called. One whose connection was
// closed makes another one, as clients do; only if none has an answer it is an error.
func (b *benchmark) load(p *process) (end func() error) {
	const clients, pause = 4, time.Millisecond
	var over atomic.Bool
	var answers atomic.Int64
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			var c *client
			for !over.Load() {
				var err error
				if c == nil {
					c, err = dial(p.addr)
				}
				if err == nil {
					_, err = c.ask()
				}
				if err == nil {
					answers.Add(1)
				} else if c != nil {
					c.close()
					c = nil
				}
				time.Sleep(pause)
			}
			if c != nil {
				c.close()
			}
		})
	}
	for begun := time.Now(); answers.Load() < 10*clients && time.Since(begun) < patience; {
		time.Sleep(pause)
	}
	return func() error {
		over.Store(true)
		wg.Wait()
		if answers.Load() < 10*clients {
			return fmt.Errorf("%s: the load had %d answers", p.kind, answers.Load())
		}
		return nil
	}
}
