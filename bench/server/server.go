//go:build linux

// Package server is what the three servers of the benchmark have in common: all
// of it but the way in which they are replaced.
package server

import (
	"cmp"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/julofinance/grace/v3/internal/load"
	"golang.org/x/sys/unix"
)

// FloorVariable makes a server end at the first line of main.
const FloorVariable = "BENCH_FLOOR"

// PlainVariable makes the server on this library one on net/http alone.
const PlainVariable = "BENCH_PLAIN"

// LoadVariable names a file with a certificate and its key. If it is set, the server
// serves what package load asks for, and does so over TLS as well, on a second address.
const LoadVariable = "BENCH_LOAD"

// TLSVariable names a file with a certificate and its key. If it is set, the server speaks
// TLS; and if MoveTLSVariable is set, this library's has MoveTLS.
const (
	TLSVariable     = "BENCH_TLS"
	MoveTLSVariable = "BENCH_MOVETLS"
)

// ProbationVariable is this library's Probation; without it that is 0.
const ProbationVariable = "BENCH_PROBATION"

// Probation is what ProbationVariable says.
func Probation() time.Duration {
	d, err := time.ParseDuration(cmp.Or(os.Getenv(ProbationVariable), "0"))
	Check(err)
	return d
}

// TLS is the file that TLSVariable names, or empty.
func TLS() string { return os.Getenv(TLSVariable) }

// Certificate is the file that LoadVariable names, or empty.
func Certificate() string { return os.Getenv(LoadVariable) }

// Now is the time of a clock that all processes share, in nanoseconds.
func Now() int64 {
	var ts unix.Timespec
	unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return ts.Nano()
}

// Begin is the first line of main. It gives the time.
func Begin() int64 {
	begun := Now()
	if os.Getenv(FloorVariable) != "" {
		fmt.Printf("main %d\n", begun)
		os.Exit(0)
	}
	return begun
}

// New gives the server. It answers with its pid; /stats gives what is on the heap
// and on the stacks, in bytes, and how many objects were allocated so far.
func New() *http.Server {
	if Certificate() != "" {
		return &http.Server{Handler: load.Handler(), ErrorLog: log.New(io.Discard, "", 0)}
	}
	answer := fmt.Sprintf("process %10d\n", os.Getpid())
	return &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/stats" {
			var m runtime.MemStats
			runtime.GC()
			runtime.GC()
			runtime.ReadMemStats(&m)
			fmt.Fprintf(w, "%d %d\n", m.HeapAlloc+m.StackInuse, m.Mallocs)
			return
		}
		io.WriteString(w, answer)
	})}
}

// Serving says that the process can answer, and since when.
func Serving(begun int64, listeners ...net.Listener) {
	var addrs []string
	for _, ln := range listeners {
		addrs = append(addrs, ln.Addr().String())
	}
	fmt.Printf("serving %d %s %d %d\n", os.Getpid(), strings.Join(addrs, ","), begun, Now())
}

// Alone says that no other generation is left. From now on the process ends when
// its standard input does: so none outlives the benchmark, whatever becomes of that.
func Alone() {
	fmt.Printf("alone %d\n", os.Getpid())
	go func() {
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
}

// Check ends the process if there is an error.
func Check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
