//go:build linux

package main

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

const (
	throughputClients = 4
	slice             = 50 * time.Millisecond
)

// connections are those of the clients.
type connections string

const (
	kept    connections = "connections kept"
	fresh   connections = "a connection per request"
	keptTLS connections = "TLS connections kept"
	moveTLS connections = "TLS connections kept, MoveTLS"
)

// throughput gives requests per second by kind, one number a run: the median of
// its slices, as a ratio to the plain server's slice of the same turn. Each run
// has processes of its own.
func (b *benchmark) throughput(runs, turns int, how connections) (ratios map[string][]float64, base []float64, err error) {
	ratios = map[string][]float64{}
	for range runs {
		r, p, err := b.throughputRun(turns, how)
		if err != nil {
			return nil, nil, err
		}
		for kind, v := range r {
			ratios[kind] = append(ratios[kind], median(v))
		}
		base = append(base, median(p))
	}
	return ratios, base, nil
}

func (b *benchmark) throughputRun(turns int, how connections) (ratios map[string][]float64, base []float64, err error) {
	work := map[string]func(client int) error{}
	for _, kind := range kinds {
		p, err := b.startFor(kind, how)
		if err != nil {
			return nil, nil, err
		}
		defer p.end()
		if how == fresh {
			work[kind] = func(int) error { _, err := askOnce(p.addr); return err }
			continue
		}
		clients := make([]*client, throughputClients)
		for i := range clients {
			if clients[i], err = p.dial(); err != nil {
				return nil, nil, err
			}
			defer clients[i].close()
		}
		work[kind] = func(i int) error { _, err := clients[i].get(requestBytes); return err }
	}
	ratios = map[string][]float64{}
	for turn := range turns + 1 {
		rates := map[string]float64{}
		for i := range kinds {
			kind := kinds[(i+turn)%len(kinds)]
			if rates[kind], err = b.perSecond(work[kind]); err != nil {
				return nil, nil, fmt.Errorf("%s: %w", kind, err)
			}
		}
		if turn == 0 { // warm from here on
			continue
		}
		base = append(base, rates[plain])
		for _, kind := range kinds[1:] {
			ratios[kind] = append(ratios[kind], rates[kind]/rates[plain])
		}
	}
	return ratios, base, nil
}

// perSecond lets all clients work for one slice of time.
func (b *benchmark) perSecond(work func(client int) error) (float64, error) {
	if err := b.ctx.Err(); err != nil {
		return 0, err
	}
	var requests atomic.Int64
	var failed atomic.Pointer[error]
	var wg sync.WaitGroup
	begun := time.Now()
	for i := range throughputClients {
		wg.Go(func() {
			n := int64(0)
			for time.Since(begun) < slice {
				if err := work(i); err != nil {
					failed.Store(&err)
					return
				}
				n++
			}
			requests.Add(n)
		})
	}
	wg.Wait()
	took := time.Since(begun).Seconds()
	if err := failed.Load(); err != nil {
		return 0, *err
	}
	return float64(requests.Load()) / took, nil
}
