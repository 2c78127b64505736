//go:build linux

package main

import (
	"fmt"
	"time"

	"github.com/julofinance/grace/v3/bench/server"
)

// A latencyResult has how long requests took that had a connection of their own,
// in microseconds.
type latencyResult struct {
	steady, upgrading []float64
	failed, upgrades  int
}

// latency measures connections that are made one after the other, in slices of
// time that take turns: one without upgrades, and one with upgrades back to back.
func (b *benchmark) latency(turns int, slice time.Duration) (map[string]*latencyResult, error) {
	results := map[string]*latencyResult{}
	processes := map[string]*process{}
	for _, kind := range kinds {
		p, err := b.start(kind)
		if err != nil {
			return nil, err
		}
		defer p.end()
		processes[kind], results[kind] = p, &latencyResult{}
	}
	for range turns {
		for _, kind := range kinds {
			p, r := processes[kind], results[kind]
			steady, failed := b.fresh(p, after(slice))
			if len(steady) == 0 {
				return nil, fmt.Errorf("%s: %d requests, none has an answer", kind, failed)
			}
			r.steady, r.failed = append(r.steady, steady...), r.failed+failed
			if kind == plain {
				continue
			}
			if err := b.freshWhileUpgraded(p, slice, r); err != nil {
				return nil, err
			}
		}
	}
	return results, nil
}

// freshWhileUpgraded upgrades p again and again while connections are made.
func (b *benchmark) freshWhileUpgraded(p *process, slice time.Duration, r *latencyResult) error {
	over := make(chan struct{})
	upgraded := make(chan error, 1)
	go func() {
		defer close(over)
		var err error
		for end := time.Now().Add(slice); err == nil && time.Now().Before(end); {
			if _, err = b.upgrade(p); err == nil {
				r.upgrades++
			}
		}
		upgraded <- err
	}()
	took, failed := b.fresh(p, over)
	r.upgrading, r.failed = append(r.upgrading, took...), r.failed+failed
	return <-upgraded
}

// fresh makes requests until over, and counts those that have no answer.
func (b *benchmark) fresh(p *process, over <-chan struct{}) (took []float64, failed int) {
	const pause = time.Millisecond
	for b.ctx.Err() == nil {
		begun := server.Now()
		if _, err := askOnce(p.addr); err != nil {
			failed++
		} else {
			took = append(took, micros(server.Now()-begun))
		}
		select {
		case <-over:
			return took, failed
		case <-time.After(pause):
		}
	}
	return took, failed
}

func after(d time.Duration) <-chan struct{} {
	over := make(chan struct{})
	time.AfterFunc(d, func() { close(over) })
	return over
}
