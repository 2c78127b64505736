//go:build linux

package main

import (
	"fmt"
	"io"
	"log"
	"maps"
	"net/http/httptest"
	"os"
	"strconv"
	"time"

	"github.com/julofinance/grace/v3/internal/load"
)

// reloads is the name of what is measured only if it is asked for: other programs, which
// have to be installed.
const reloads = "reloads"

// reloadRows counts the requests that clients of other tools lose while these are
// reloaded, one tool after the other, with the clients of lost.go. Behind each is the same
// server, which stays as it is.
func (b *benchmark) reloadRows(t *table, s size) error {
	cert, trust, err := b.certificate()
	if err != nil {
		return err
	}
	backend := httptest.NewUnstartedServer(load.Handler())
	backend.Config.ErrorLog = log.New(io.Discard, "", 0)
	backend.Start()
	defer backend.Close()

	fmt.Fprintf(t.w, "\nlost per reload, %d reloads; haproxy* has option idle-close-on-response\n", s.lossTurns)
	heads, reports := []any{""}, map[string]load.Report{}
	for _, f := range fronts {
		heads = append(heads, f.name)
		path, err := f.find()
		if err != nil {
			if ci, _ := strconv.ParseBool(os.Getenv("CI")); ci {
				return err
			}
			fmt.Fprintf(t.w, "%s: not measured: %v\n", f.name, err)
			continue
		}
		p, err := b.startProxy(f, path, backend.Listener.Addr().String(), cert)
		if err != nil {
			return err
		}
		reports[f.name], err = b.reload(p, s.lossTurns, load.Config{
			Addr: p.addr, TLSAddr: p.tlsAddr, Trust: trust, Delay: 2 * time.Millisecond, Limit: time.Minute,
		})
		p.end()
		if err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
		fmt.Fprintf(t.w, "%s: %s\n", f.name, f.version(b.ctx, path))
	}
	fmt.Fprintln(t.w, "nginx: without keepalive_min_timeout, which there is from 1.27.4 on; it ends a stream when\n"+
		"one side has said all, so it has no clients of that kind")
	fmt.Fprintf(t.w, rowFormat, heads...)
	row := func(name, format string, of func(load.Report) float64) {
		var numbers []float64
		for _, f := range fronts {
			n := none
			if r, ok := reports[f.name]; ok {
				n = of(r)
			}
			numbers = append(numbers, n)
		}
		t.row(name, format, numbers...)
	}
	per := func(n int) float64 { return float64(n) / float64(s.lossTurns) }
	for _, k := range lossKinds {
		row(k.name, "%.1f", func(r load.Report) float64 {
			if count, ok := r.Kinds[k.kind]; ok {
				return per(count.Losses())
			}
			return none
		})
	}
	// RFC 9113, section 6.8: these are the requests that a client may send again.
	row("  which GOAWAY said are not served", "%.1f", func(r load.Report) float64 { return per(r.Kinds[load.HTTP2].Lost["not served"]) })
	row("all", "%.1f", func(r load.Report) float64 { return per(r.Lost()) })
	row("answered, in all", "%.0f", func(r load.Report) float64 { return float64(r.Total().Answered) })
	return nil
}

// reload reloads a tool again and again under load.
func (b *benchmark) reload(p *proxy, turns int, cfg load.Config) (load.Report, error) {
	cfg.Kinds = map[load.Kind]int{}
	for _, k := range lossKinds {
		cfg.Kinds[k.kind] = k.clients
	}
	maps.DeleteFunc(cfg.Kinds, func(k load.Kind, _ int) bool { return k == load.Stream && !p.streams })
	r, err := load.Start(b.ctx, cfg)
	if err != nil {
		return load.Report{}, err
	}
	defer r.Stop()
	if err := b.moreAnswers(r); err != nil {
		return load.Report{}, err
	}
	if now := r.Snapshot(); now.Lost() > 0 {
		return now, fmt.Errorf("requests are lost before the first reload:\n%v", now)
	}
	for range turns {
		if err := p.reload(b.ctx); err != nil {
			return r.Snapshot(), err
		}
		if err := b.moreAnswers(r); err != nil {
			return r.Snapshot(), err
		}
	}
	return r.Stop(), nil
}
