//go:build unix

package grace_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/julofinance/grace/v3"
)

// What u.HTTP on u.Listen costs, measured against plain net/http in the same
// process and the same seconds: short slices take turns, and each ratio is the
// median of the slices' own ratios. On a machine that does other things too,
// only that means something; cpu-ratio, of the processor time for a request, is
// the calmer one of the two. Each benchmark chooses its number of turns itself.

const (
	benchBody    = "hello, world\n"
	benchRequest = "GET / HTTP/1.1\r\nHost: bench\r\n\r\n"
	benchClients = 4
	benchSlice   = 50 * time.Millisecond
	benchTurns   = 300
)

// A benchServer is plain net/http, or ours.
type benchServer struct {
	addr         string
	idle, closed atomic.Int64 // how often a connection became that
}

func (s *benchServer) server() *http.Server {
	return &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, benchBody) }),
		ConnState: func(_ net.Conn, state http.ConnState) {
			switch state {
			case http.StateIdle:
				s.idle.Add(1)
			case http.StateClosed:
				s.closed.Add(1)
			}
		},
	}
}

// A benchUpgrader starts servers of both kinds, to be compared.
type benchUpgrader struct {
	b *testing.B
	u *grace.Upgrader
}

func newBenchUpgrader(b *testing.B) *benchUpgrader {
	b.Helper()
	u, err := grace.New(grace.Signals(), grace.Logger(nil), grace.PIDFile(""))
	if err == nil {
		err = u.Ready()
	}
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		u.Stop()
		u.Stop() // cuts off what is left
		<-u.Done()
	})
	return &benchUpgrader{b, u}
}

func (u *benchUpgrader) plain() *benchServer {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		u.b.Fatal(err)
	}
	s := &benchServer{addr: ln.Addr().String()}
	srv := s.server()
	go srv.Serve(ln)
	u.b.Cleanup(func() { srv.Close() })
	return s
}

func (u *benchUpgrader) ours() *benchServer {
	ln, err := u.u.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		u.b.Fatal(err)
	}
	s := &benchServer{addr: ln.Addr().String()}
	execute, _ := u.u.HTTP(s.server(), ln)
	go execute()
	return s
}

// A benchClient makes requests on one connection, without an allocation.
type benchClient struct {
	conn *net.TCPConn
	buf  [1024]byte
}

func dialBench(addr string) (*benchClient, error) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	return &benchClient{conn: c.(*net.TCPConn)}, nil
}

var (
	benchRequestBytes = []byte(benchRequest)
	benchEnd          = []byte("\r\n\r\n" + benchBody)
)

func (c *benchClient) get() error {
	if _, err := c.conn.Write(benchRequestBytes); err != nil {
		return err
	}
	for n := 0; ; {
		m, err := c.conn.Read(c.buf[n:])
		if err != nil {
			return err
		}
		if n += m; bytes.HasSuffix(c.buf[:n], benchEnd) {
			return nil
		}
	}
}

// abort closes the connection so that no port waits for its time to pass.
func (c *benchClient) abort() {
	c.conn.SetLinger(0)
	c.conn.Close()
}

// A rate is what one slice of work has shown.
type rate struct {
	perSecond float64
	cpu       time.Duration // of the processor for one request, both ends of it
}

// perSecond runs one slice of work with several clients.
func perSecond(b *testing.B, work func(client int) error) rate {
	b.Helper()
	var requests atomic.Int64
	var wg sync.WaitGroup
	begun, cpu := time.Now(), processorTime(b)
	for client := range benchClients {
		wg.Go(func() {
			for time.Since(begun) < benchSlice {
				if err := work(client); err != nil {
					b.Error(err)
					return
				}
				requests.Add(1)
			}
		})
	}
	wg.Wait()
	if b.Failed() {
		b.FailNow()
	}
	n := requests.Load()
	return rate{float64(n) / time.Since(begun).Seconds(), (processorTime(b) - cpu) / time.Duration(n)}
}

// processorTime is what this process has used so far.
func processorTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// compare lets two kinds take turns and reports ours : plain, and what plain does.
func compare(b *testing.B, unit string, plain, ours func() rate) {
	b.Helper()
	plain()
	ours() // warm
	b.ResetTimer()
	var ratios, cpus, base []float64
	for turn := range benchTurns {
		var p, o rate
		if turn%2 == 0 {
			p, o = plain(), ours()
		} else {
			o, p = ours(), plain()
		}
		ratios = append(ratios, o.perSecond/p.perSecond)
		cpus = append(cpus, float64(p.cpu)/float64(o.cpu))
		base = append(base, p.perSecond)
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(median(ratios), "ratio")
	b.ReportMetric(median(cpus), "cpu-ratio")
	b.ReportMetric(median(base), "plain-"+unit)
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

// BenchmarkKeepAlive: requests per second over connections that stay, ours
// divided by plain's. Wanted: 0.98 or more.
func BenchmarkKeepAlive(b *testing.B) {
	u := newBenchUpgrader(b)
	side := func(s *benchServer) func() rate {
		clients := make([]*benchClient, benchClients)
		for i := range clients {
			c, err := dialBench(s.addr)
			if err != nil {
				b.Fatal(err)
			}
			clients[i] = c
			b.Cleanup(c.abort)
		}
		return func() rate { return perSecond(b, func(i int) error { return clients[i].get() }) }
	}
	compare(b, "req/s", side(u.plain()), side(u.ours()))
}

// BenchmarkConnectionPerRequest: the same with a new connection for each
// request. Wanted: 0.98 or more.
func BenchmarkConnectionPerRequest(b *testing.B) {
	u := newBenchUpgrader(b)
	side := func(s *benchServer) func() rate {
		return func() rate {
			return perSecond(b, func(int) error {
				c, err := dialBench(s.addr)
				if err != nil {
					return err
				}
				defer c.abort()
				return c.get()
			})
		}
	}
	compare(b, "req/s", side(u.plain()), side(u.ours()))
}

// BenchmarkAllocations: heap allocations per request on a connection that
// stays. Wanted: as many as plain net/http.
func BenchmarkAllocations(b *testing.B) {
	const requests, turns = 5000, 7
	u := newBenchUpgrader(b)
	plain, ours := u.plain(), u.ours()
	perRequest := func(s *benchServer) float64 {
		c, err := dialBench(s.addr)
		if err != nil {
			b.Fatal(err)
		}
		defer c.abort()
		var before, after runtime.MemStats
		for i := range requests + 100 {
			if i == 100 { // warm
				runtime.ReadMemStats(&before)
			}
			if err := c.get(); err != nil {
				b.Fatal(err)
			}
		}
		runtime.ReadMemStats(&after)
		return float64(after.Mallocs-before.Mallocs) / requests
	}
	var p, o []float64
	for range turns {
		p, o = append(p, perRequest(plain)), append(o, perRequest(ours))
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(median(o)/median(p), "ratio")
	b.ReportMetric(median(p), "plain-allocs/req")
	b.ReportMetric(median(o), "allocs/req")
}

// BenchmarkIdleConnection: memory of a keep-alive connection that has had one
// request, both ends of it. Wanted: 300 bytes more than plain's, at most.
func BenchmarkIdleConnection(b *testing.B) {
	const conns, turns = 5000, 5
	u := newBenchUpgrader(b)
	perConnection := func(s *benchServer) float64 {
		clients := make([]*benchClient, 0, conns)
		before := memoryInUse()
		idle, closed := s.idle.Load(), s.closed.Load()
		for range conns {
			c, err := dialBench(s.addr)
			if err == nil {
				err = c.get()
			}
			if err != nil {
				b.Fatal(fmt.Errorf("connection %d: %w", len(clients), err))
			}
			clients = append(clients, c)
		}
		await(b, "idle connections", func() bool { return s.idle.Load() == idle+conns })
		inUse := memoryInUse() - before
		for _, c := range clients {
			c.abort()
		}
		await(b, "the end of the connections", func() bool { return s.closed.Load() == closed+conns })
		return inUse / conns
	}
	perConnection(u.plain()) // warm
	var p, o, more []float64
	for range turns {
		p, o = append(p, perConnection(u.plain())), append(o, perConnection(u.ours()))
		more = append(more, o[len(o)-1]-p[len(p)-1])
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(median(o)/median(p), "ratio")
	b.ReportMetric(median(p), "plain-B/conn")
	b.ReportMetric(median(more), "more-B/conn")
}

// memoryInUse is what is on the heap and on goroutines' stacks.
func memoryInUse() float64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc + m.StackInuse)
}

// await waits for cond, and fails the benchmark if it does not come true.
func await(b *testing.B, what string, cond func() bool) {
	b.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	end := time.After(30 * time.Second)
	for !cond() {
		select {
		case <-tick.C:
		case <-end:
			b.Fatalf("waited in vain for %s", what)
		}
	}
}
