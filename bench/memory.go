//go:build linux

package main

import "fmt"

// A memoryResult is what the server's process has needed: for a connection that has
// had one request and is idle now, and for one more request on such a connection.
type memoryResult struct {
	bytes, objects, perRequest []float64
}

// memory measures each kind in processes of its own, turn by turn.
func (b *benchmark) memory(turns, conns int, how connections) (map[string]*memoryResult, error) {
	results := map[string]*memoryResult{}
	for _, kind := range kinds {
		results[kind] = &memoryResult{}
	}
	for range turns {
		for _, kind := range kinds {
			if err := b.memoryOf(kind, conns, how, results[kind]); err != nil {
				return nil, fmt.Errorf("%s: %w", kind, err)
			}
		}
	}
	return results, nil
}

func (b *benchmark) memoryOf(kind string, conns int, how connections, r *memoryResult) error {
	if err := b.ctx.Err(); err != nil {
		return err
	}
	p, err := b.startFor(kind, how)
	if err != nil {
		return err
	}
	defer p.end()
	asker, err := p.dial()
	if err != nil {
		return err
	}
	defer asker.close()
	clients := make([]*client, conns)
	bytes, objects, err := asker.stats()
	for i := range clients {
		if err == nil {
			clients[i], err = p.dial()
		}
		if err == nil {
			defer clients[i].close()
			_, err = clients[i].ask()
		}
	}
	var moreBytes, moreObjects, last float64
	if err == nil {
		moreBytes, moreObjects, err = asker.stats()
	}
	for _, c := range clients {
		if err == nil {
			_, err = c.ask()
		}
	}
	if err == nil {
		_, last, err = asker.stats()
	}
	n := float64(conns)
	r.bytes, r.objects = append(r.bytes, (moreBytes-bytes)/n), append(r.objects, (moreObjects-objects)/n)
	r.perRequest = append(r.perRequest, (last-moreObjects)/n)
	return err
}

var statsRequest = []byte("GET /stats HTTP/1.1\r\nHost: bench\r\n\r\n")

// stats asks the server what it has in use, in bytes, and how many objects it has
// allocated since it began.
func (c *client) stats() (bytes, objects float64, err error) {
	body, err := c.get(statsRequest)
	if err == nil {
		_, err = fmt.Sscan(string(body), &bytes, &objects)
	}
	return bytes, objects, err
}
