//go:build linux

// Bench prints what replacing a server costs, and what it costs while nothing is
// replaced: the same small server on net/http alone, on this library and on
// github.com/cloudflare/tableflip, measured turn by turn in one run. On a machine
// that does other things too, only the ratios mean something.
//
//	go run .
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// size is how much is measured.
type size struct {
	turns              int           // upgrades of each kind, idle and under load
	runs, slices       int           // of throughput
	memoryTurns, conns int           // of memory
	latencyTurns       int           // of latency
	latencySlice       time.Duration // each: steady, and with upgrades
	lossTurns          int           // upgrades, or reloads, of each kind under the load of lost.go
}

var whole = size{turns: 100, runs: 5, slices: 60, memoryTurns: 5, conns: 2000, latencyTurns: 10, latencySlice: time.Second, lossTurns: 30}

// A benchmark is one run of all.
type benchmark struct {
	ctx      context.Context
	dir      string   // of the PID files
	binaries string   // where the servers are
	errors   *os.File // what the servers say on standard error
	env      []string
	pidFiles int
}

func main() {
	limit := flag.Duration("limit", 20*time.Minute, "how long all of it may take")
	flag.IntVar(&whole.turns, "turns", whole.turns, "upgrades of each kind of server, idle and under load")
	only := flag.String("only", "", "measure only this: upgrades, throughput, memory, latency or lost; or reloads, which else is not: what HAProxy and nginx lose")
	binaries := flag.String("binaries", "", "directory of servers that are built already, grace and tableflip: to compare two versions")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, *limit)
	defer cancel()
	if err := run(ctx, whole, *only, *binaries, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		cancel()
		stop()
		os.Exit(1)
	}
}

// run measures, and prints the table. It leaves neither a process nor a file behind.
func run(ctx context.Context, s size, only, binaries string, w io.Writer) (err error) {
	dir, err := os.MkdirTemp("", "grace-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	// A generation whose parent has ended comes to this process, and is reaped.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become a child subreaper: %w", err)
	}
	b := &benchmark{ctx: ctx, dir: dir, binaries: binaries, env: environment()}
	if b.errors, err = os.Create(filepath.Join(dir, "errors")); err != nil {
		return err
	}
	defer b.errors.Close()
	if binaries == "" && only != reloads {
		b.binaries = dir
		if err := build(ctx, dir); err != nil {
			return err
		}
	}
	if err = b.measure(s, only, w); err != nil && ctx.Err() == nil {
		text, _ := os.ReadFile(b.errors.Name())
		err = fmt.Errorf("%w\nthe servers have written, at the end:\n%s", err, text[max(0, len(text)-4096):])
	}
	return err
}

func (b *benchmark) measure(s size, only string, w io.Writer) error {
	t := newTable(w)
	if only == reloads {
		return b.reloadRows(t, s)
	}
	for _, part := range []struct {
		name    string
		measure func(*table) error
	}{
		{"upgrades", func(t *table) error { return b.upgradeRows(t, s) }},
		{"throughput", func(t *table) error { return b.throughputRows(t, s) }},
		{"memory", func(t *table) error { return b.memoryRows(t, s) }},
		{"latency", func(t *table) error { return b.latencyRows(t, s) }},
		{"lost", func(t *table) error { return b.lostRows(t, s) }},
	} {
		if only != "" && only != part.name {
			continue
		}
		if err := part.measure(t); err != nil {
			return err
		}
	}
	return nil
}

func (b *benchmark) upgradeRows(t *table, s size) error {
	for _, loaded := range []bool{false, true} {
		r, err := b.upgrades(s.turns, loaded)
		if err != nil {
			return err
		}
		g, f := r[ours], r[tableflip]
		how := "idle"
		if loaded {
			how = "under load"
		}
		t.head(fmt.Sprintf("signal → first answer of the new process, %s, median of %d", how, len(g.answers)))
		t.row("floor: fork+exec of the same binary to main, µs", "%.0f", none, median(g.floors), median(f.floors))
		t.row("to main of the new process, µs", "%.0f", none, median(g.mains), median(f.mains))
		t.row("to where it can answer, µs", "%.0f", none, median(g.servings), median(f.servings))
		t.row("to the first answer, µs", "%.0f", none, median(g.answers), median(f.answers))
		t.row("  ÷ the floor", "%.2f", none, median(g.answers)/median(g.floors), median(f.answers)/median(f.floors))
		t.row("  ÷ tableflip's", "%.2f", none, median(g.answers)/median(f.answers), 1)
		t.row("requests without an answer until then", "%.0f", none, float64(g.failed), float64(f.failed))
	}
	return nil
}

func (b *benchmark) throughputRows(t *table, s size) error {
	for _, how := range []connections{kept, fresh, keptTLS, moveTLS} {
		ratios, base, err := b.throughput(s.runs, s.slices, how)
		if err != nil {
			return err
		}
		t.head(fmt.Sprintf("throughput, %s, %d runs", how, len(base)))
		t.row("requests/s", "%.0f", mean(base), mean(base)*mean(ratios[ours]), mean(base)*mean(ratios[tableflip]))
		t.row("  ÷ plain, mean", "%.3f", 1, mean(ratios[ours]), mean(ratios[tableflip]))
		t.row("  least", "%.3f", none, least(ratios[ours]), least(ratios[tableflip]))
		t.row("  most", "%.3f", none, most(ratios[ours]), most(ratios[tableflip]))
	}
	return nil
}

func (b *benchmark) memoryRows(t *table, s size) error {
	for _, how := range []connections{kept, keptTLS, moveTLS} {
		r, err := b.memory(s.memoryTurns, s.conns, how)
		if err != nil {
			return err
		}
		p, g, f := r[plain], r[ours], r[tableflip]
		t.head(fmt.Sprintf("memory of the server, %d idle, %s, median of %d", s.conns, how, len(p.bytes)))
		t.row("bytes a connection", "%.0f", median(p.bytes), median(g.bytes), median(f.bytes))
		t.row("  more than plain", "%.0f", 0, median(g.bytes)-median(p.bytes), median(f.bytes)-median(p.bytes))
		t.row("allocations a connection, one request counted", "%.1f", median(p.objects), median(g.objects), median(f.objects))
		t.row("allocations for one more request", "%.1f", median(p.perRequest), median(g.perRequest), median(f.perRequest))
	}
	return nil
}

func (b *benchmark) latencyRows(t *table, s size) error {
	r, err := b.latency(s.latencyTurns, s.latencySlice)
	if err != nil {
		return err
	}
	p, g, f := r[plain], r[ours], r[tableflip]
	t.head("a request on a connection of its own")
	t.row("steady, p50, µs", "%.0f", quantile(p.steady, 0.5), quantile(g.steady, 0.5), quantile(f.steady, 0.5))
	t.row("steady, p99, µs", "%.0f", quantile(p.steady, 0.99), quantile(g.steady, 0.99), quantile(f.steady, 0.99))
	t.row("upgrades back to back, p50, µs", "%.0f", none, quantile(g.upgrading, 0.5), quantile(f.upgrading, 0.5))
	t.row("upgrades back to back, p99, µs", "%.0f", none, quantile(g.upgrading, 0.99), quantile(f.upgrading, 0.99))
	t.row("upgrades", "%.0f", none, float64(g.upgrades), float64(f.upgrades))
	t.row("requests", "%.0f", float64(len(p.steady)), float64(len(g.steady)+len(g.upgrading)), float64(len(f.steady)+len(f.upgrading)))
	t.row("  without an answer", "%.0f", float64(p.failed), float64(g.failed), float64(f.failed))
	return nil
}
