//go:build linux

// Package h2spec puts the cases of github.com/summerwind/h2spec to our servers.
package h2spec

import (
	"bytes"
	"fmt"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/julofinance/grace/v3"
	"github.com/julofinance/grace/v3/internal/proctest"
	"github.com/julofinance/grace/v3/internal/testing/tlstest"
)

var library = grace.Serve // so that a cached result is stale when it changes

func TestMain(m *testing.M) {
	runtime.KeepAlive(library)
	proctest.Main(m)
}

// cases is how many h2spec has, strict ones with them.
const cases = 146

// TestLikeNetHTTP: h2spec says the same of a server of ours as of one that is net/http
// alone, also of one that has replaced another, over TLS and without.
func TestLikeNetHTTP(t *testing.T) {
	run := proctest.Build(t, "./run", "-race=false")
	server := proctest.Build(t, "./server")
	dir := t.TempDir()
	cert := tlstest.File(t)
	pidFile := filepath.Join(dir, "pid")
	plain := proctest.Start(t, proctest.Command{Path: server, Args: []string{"-plain", "-cert", cert}})
	ours := proctest.Start(t, proctest.Command{Path: server, Args: []string{"-cert", cert, "-pidfile", pidFile}})
	// The addresses over TLS and without, in this order.
	const addresses = `^listening (\S+) (\S+)`
	plainAddrs := plain.WaitLine(addresses)[1:]
	oursAddrs := ours.WaitLine(addresses)[1:]
	ours.WaitLine(`msg="grace: serving"`)

	var want, before [2]results
	var wg sync.WaitGroup
	wg.Go(func() { want = both(t, run, plainAddrs) })
	wg.Go(func() { before = both(t, run, oursAddrs) })
	wg.Wait()
	first := ours.Pid()
	ours.Signal(first, syscall.SIGUSR2)
	ours.WaitGone(first)
	after := both(t, run, oursAddrs)
	for i, over := range []string{"over TLS", "without TLS"} {
		if n := len(want[i]); n != cases {
			t.Errorf("%s: h2spec has %d cases, want %d", over, n, cases)
		}
		t.Logf("%s: net/http alone %s, before a hand-over %s, after it %s", over, want[i], before[i], after[i])
		for when, got := range map[string]results{"before": before[i], "after": after[i]} {
			for _, name := range want[i].differ(got) {
				if !agree(t, run, plainAddrs[i], oursAddrs[i], i == 0, name) {
					t.Errorf("%s, %s a hand-over: case %s: %s, and with net/http alone %s", over, when, name, got[name], want[i][name])
				}
			}
		}
	}
}

// results are those of h2spec's cases, by their names.
type results map[string]string

func (r results) String() string {
	n := map[string]int{}
	for _, result := range r {
		n[result]++
	}
	return fmt.Sprintf("%d passed, %d failed, %d skipped", n["passed"], n["failed"], n["skipped"])
}

// differ returns the names of the cases whose results are not the same.
func (r results) differ(o results) (names []string) {
	for name := range r {
		if r[name] != o[name] {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// agree puts a case to both servers again. Some results are a matter of chance (what
// comes first, an answer or the end), and on a slow machine of time, of which there is
// more now.
func agree(t *testing.T, run, plain, ours string, overTLS bool, name string) bool {
	for range 5 {
		w, g := h2spec(t, run, plain, overTLS, name), h2spec(t, run, ours, overTLS, name)
		if w[name] != "" && w[name] == g[name] {
			return true
		}
	}
	return false
}

// both asks over TLS and without, at the same time.
func both(t *testing.T, run string, addrs []string) (all [2]results) {
	t.Helper()
	var wg sync.WaitGroup
	for i, addr := range addrs {
		wg.Go(func() { all[i] = h2spec(t, run, addr, i == 0) })
	}
	wg.Wait()
	return all
}

func h2spec(t *testing.T, run, addr string, overTLS bool, sections ...string) results {
	timeout := 2 * time.Second // as h2spec has it by itself
	if len(sections) > 0 {
		timeout *= 5
	}
	cmd := exec.Command(run, "-addr", addr, fmt.Sprintf("-tls=%v", overTLS), "-timeout", timeout.String(), "-sections", strings.Join(sections, ","))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		t.Errorf("%v: %v\n%s", cmd, err, said.Bytes()[max(0, said.Len()-2000):])
	}
	r := results{}
	for line := range strings.Lines(string(out)) {
		if f := strings.Split(line, "\t"); len(f) == 3 {
			r[f[0]] = f[1]
		}
	}
	return r
}
