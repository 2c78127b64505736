//go:build linux

package grace

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"syscall"
	"testing"
	"time"
)

// BenchmarkMove moves idle HTTP connections from one process to another, here
// two halves of one: what both do is paid for by one scheduler. It prints
// connections per second, and at the end how much longer one of 20,000 takes
// than one of 1,000: 1 is linear.
func BenchmarkMove(b *testing.B) {
	perConn := map[int]time.Duration{}
	for _, n := range []int{1000, 5000, 20000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			// A client's end, old's, new's, and new's again while net.FileConn
			// copies it: all are in this process's table.
			if l := filesLimit(b); uint64(2*n+500) > l {
				n = (int(l) - 500) / 2
				b.Logf("RLIMIT_NOFILE is %d: %d connections", l, n)
			}
			var total time.Duration
			for range b.N {
				total += moveMany(b, n)
			}
			per := total / time.Duration(b.N*n)
			perConn[n] = per
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(float64(time.Second)/float64(per), "conns/s")
			b.ReportMetric(float64(per), "ns/conn")
			if first := perConn[1000]; first > 0 {
				b.ReportMetric(float64(per)/float64(first), "×1000's")
			}
		})
	}
}

func filesLimit(b *testing.B) uint64 {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		b.Fatal(err)
	}
	return l.Cur
}

func moveMany(b *testing.B, n int) time.Duration {
	b.StopTimer()
	p := newCouple(b, func(side string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, side) })
	})
	p.runOld()
	p.runNew()
	for range n {
		c := p.dial()
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: grace\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReaderSize(c, 256), nil)
		if err != nil {
			b.Fatal(err)
		}
		resp.Body.Close()
	}
	runtime.GC()
	b.StartTimer()
	begun := time.Now()
	_, done := p.drain()
	receive(b, done, "all to move")
	took := time.Since(begun)
	b.StopTimer()
	if moved := p.mover.count(); moved != n {
		b.Fatalf("moved %d of %d", moved, n)
	}
	return took
}
