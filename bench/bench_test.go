//go:build linux

package main

import (
	"context"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/proctest"
	"github.com/julofinance/grace/v3/internal/testing/wait"
)

var short = size{turns: 1, runs: 1, slices: 1, memoryTurns: 1, conns: 10, latencyTurns: 1, latencySlice: time.Millisecond, lossTurns: 1}

// TestTable makes a short run of everything, and looks at the table: each row is
// there, with its numbers, and no request to this library's server was lost.
func TestTable(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	var out strings.Builder
	if err := run(ctx, short, "", "", &out); err != nil {
		t.Fatal(err)
	}
	columns := map[string]int{}
	for line := range strings.Lines(out.String()) {
		if len(line) <= 50 {
			continue
		}
		name := strings.TrimSpace(string([]rune(line)[:50]))
		columns[name] = len(strings.Fields(string([]rune(line)[50:])))
		if strings.HasPrefix(name, "without an answer") {
			if f := strings.Fields(string([]rune(line)[50:])); f[0] != "0" || f[1] != "0" {
				t.Errorf("requests to plain and grace that had no answer: %v", f[:2])
			}
		}
		if name == "all" {
			if f := strings.Fields(string([]rune(line)[50:])); f[0] != "0.0" {
				t.Errorf("requests to grace that were lost: %s", line)
			}
		}
	}
	for name, want := range map[string]int{
		"floor: fork+exec of the same binary to main, µs": 2,
		"to the first answer, µs":                         2,
		"÷ the floor":                                     2,
		"÷ tableflip's":                                   2,
		"÷ plain, mean":                                   3,
		"bytes a connection":                              3,
		"allocations a connection, one request counted":   3,
		"allocations for one more request":                3,
		"steady, p99, µs":                                 3,
		"upgrades back to back, p99, µs":                  2,
		"without an answer":                               3,
		"keep-alive POSTs":                                2,
		"TLS keep-alive POSTs":                            2,
		"HTTP/2 POSTs":                                    2,
		"all":                                             2,
	} {
		if columns[name] != want {
			t.Errorf("%d numbers in the row %q, want %d", columns[name], name, want)
		}
	}
	for _, head := range []string{"throughput, TLS connections kept, 1", "throughput, TLS connections kept, MoveTLS, 1", "10 idle, connections kept, ", "10 idle, TLS connections kept, median", "10 idle, TLS connections kept, MoveTLS, "} {
		if !strings.Contains(out.String(), head) {
			t.Errorf("there is no table %q", head)
		}
	}
	if t.Failed() {
		t.Log(out.String())
	}
	nothingLeft(t)
}

// TestLimit: a run whose time is up ends with an error, and ends what it has started.
func TestLimit(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	endless := short
	endless.turns = 1 << 30
	go func() {
		defer cancel()
		wait.Poll(func() bool { // until both servers run
			return slices.ContainsFunc(proctest.Children(os.Getpid()), func(s proctest.Stat) bool { return s.Name == tableflip })
		})
	}()
	var out strings.Builder
	if err := run(ctx, endless, "upgrades", "", &out); err == nil {
		t.Error("no error")
	}
	nothingLeft(t)
}

// nothingLeft: no process of a run, and no file.
func nothingLeft(t *testing.T) {
	t.Helper()
	if left := proctest.Children(os.Getpid()); len(left) > 0 {
		t.Errorf("processes are left: %+v", left)
	}
	files, err := os.ReadDir(os.Getenv("TMPDIR"))
	if err != nil || len(files) > 0 {
		t.Errorf("files are left: %v; error %v", files, err)
	}
}

func TestQuantile(t *testing.T) {
	v := []float64{5, 1, 4, 2, 3}
	for share, want := range map[float64]float64{0: 1, 0.2: 1, 0.5: 3, 0.81: 5, 1: 5} {
		if got := quantile(v, share); got != want {
			t.Errorf("the quantile %v of %v is %v, want %v", share, v, got, want)
		}
	}
	if got := median(v[:4]); got != 3 {
		t.Errorf("the median of %v is %v, want 3", v[:4], got)
	}
}

// TestReloads makes a short run of what reloads cost the clients of other tools. A tool
// that is not installed has no numbers, and is named.
func TestReloads(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	var out strings.Builder
	if err := run(ctx, short, reloads, "", &out); err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	var found, streaming []string
	for _, f := range fronts {
		if _, err := f.find(); err == nil {
			found = append(found, f.name)
			if f.streams {
				streaming = append(streaming, f.name)
			}
		} else if want := f.name + ": not measured: " + err.Error(); !strings.Contains(out.String(), want) {
			t.Errorf("no line %q", want)
		}
	}
	columns := map[string][]string{}
	for line := range strings.Lines(out.String()) {
		if r := []rune(line); len(r) > 50 {
			columns[strings.TrimSpace(string(r[:50]))] = strings.Fields(string(r[50:]))
		}
	}
	for name, want := range map[string][]string{
		"keep-alive POSTs":                 found,
		"requests of 300 ms":               found,
		"upgraded streams of 1.5 s":        streaming,
		"a connection per request":         found,
		"TLS keep-alive POSTs":             found,
		"HTTP/2 POSTs":                     found,
		"which GOAWAY said are not served": found,
		"all":                              found,
		"answered, in all":                 found,
	} {
		if len(columns[name]) != len(want) {
			t.Errorf("the numbers %v in the row %q, want those of %v", columns[name], name, want)
		}
	}
	if slices.Contains(columns["answered, in all"], "0") {
		t.Error("clients of a tool have no answer")
	}
	if t.Failed() {
		t.Log(out.String())
	}
	nothingLeft(t)
}

// TestMissingTool: a tool that is not there is said to be missing, and makes CI fail.
func TestMissingTool(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	all := fronts
	fronts = []front{{name: "other", program: "no-such-tool"}}
	defer func() { fronts = all }()
	for _, ci := range []string{"", "true"} {
		t.Setenv("CI", ci)
		var out strings.Builder
		err := run(t.Context(), short, reloads, "", &out)
		if want := "no-such-tool is missing: install the package no-such-tool"; (err != nil) != (ci == "true") ||
			err != nil && !strings.Contains(err.Error(), want) || err == nil && !strings.Contains(out.String(), want) {
			t.Errorf("with CI=%s: error %v, and it prints\n%s", ci, err, &out)
		}
	}
	nothingLeft(t)
}
