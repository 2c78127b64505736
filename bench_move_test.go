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
// connections per second, the processor time of one, which a busy machine does
// not change much, and how much more of it one of 20,000 takes than one of 1,000:
// 1 is linear.
func BenchmarkMove(b *testing.B) {
	perConn := map[int]time.Duration{}
	for _, n := range []int{1000, 5000, 20000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			// A client's end, old's, new's, and new's again while net.FileConn
			// copies it: all are in this process's table.
			if l := filesLimit(b); uint64(2*n+1500) > l {
				n = (int(l) - 1500) / 2
				b.Logf("RLIMIT_NOFILE is %d: %d connections", l, n)
			}
			var total, cpu time.Duration
			for range b.N {
				t, c := moveMany(b, n)
				total, cpu = total+t, cpu+c
			}
			cpu /= time.Duration(b.N * n)
			per := total / time.Duration(b.N*n)
			perConn[n] = cpu
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(float64(time.Second)/float64(per), "conns/s")
			b.ReportMetric(float64(cpu), "cpu-ns/conn")
			if first := perConn[1000]; first > 0 {
				b.ReportMetric(float64(cpu)/float64(first), "×1000's")
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

func moveMany(b *testing.B, n int) (took, cpu time.Duration) {
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
	begun, before := time.Now(), cpuTime(b)
	_, done := p.drain()
	receive(b, done, "all to move")
	took, cpu = time.Since(begun), cpuTime(b)-before
	b.StopTimer()
	if moved := p.mover.count(); moved != n {
		b.Fatalf("moved %d of %d", moved, n)
	}
	return took, cpu
}

func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
