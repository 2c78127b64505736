//go:build linux

package integration_test

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/proctest"
	"github.com/julofinance/grace/v3/internal/testing/tlstest"
	"golang.org/x/sys/unix"
)

// What grows with the number of listeners and connections, and what the end of the
// old process costs, against what it can't cost less than, measured in turns in the
// same run: each ratio is one of medians. All times are taken by the processes
// themselves, from one clock. What an upgrade costs by itself is measured by the
// module in bench/.

const benchServer = "github.com/julofinance/grace/v3/integration_test/benchserver"

func clock() int64 {
	var ts unix.Timespec
	unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return ts.Nano()
}

// A benchedServer is upgraded again and again.
type benchedServer struct {
	*proctest.Process
	pid int
}

func startBenched(b *testing.B, listeners int, more ...string) *benchedServer {
	b.Helper()
	s := &benchedServer{Process: proctest.Start(b, proctest.Command{
		Path: proctest.Build(b, benchServer),
		Args: append([]string{"-listeners", strconv.Itoa(listeners), "-pidfile", filepath.Join(b.TempDir(), "pid")}, more...),
	})}
	s.waitReady(b)
	return s
}

// waitReady waits for a generation that is alone, and says when it was ready
// and when its main began.
func (s *benchedServer) waitReady(b *testing.B) (ready, begun int64) {
	b.Helper()
	m := s.WaitLine(`^ready (\d+) begun (\d+) pid (\d+)`)
	s.pid = atoi(b, m[3])
	return int64(atoi(b, m[1])), int64(atoi(b, m[2]))
}

// upgrade gives the microseconds from the signal until the new process was ready.
func (s *benchedServer) upgrade(b *testing.B) float64 {
	b.Helper()
	begun := clock()
	s.Signal(s.pid, syscall.SIGUSR2)
	ready, _ := s.waitReady(b)
	return float64(ready-begun) / 1e3
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

// BenchmarkListener: what each of 1,000 listeners adds to the time from SIGUSR2
// until the new process accepts. The baseline is what each adds to a first
// start, which opens them. Wanted: 20 µs, at most.
func BenchmarkListener(b *testing.B) {
	const turns, more = 30, 1000
	one, many := startBenched(b, 1), startBenched(b, 1+more)
	b.ResetTimer()
	var handed, opened []float64
	for range turns {
		handed = append(handed, (many.upgrade(b)-one.upgrade(b))/more)
		opened = append(opened, (coldStart(b, 1+more)-coldStart(b, 1))/more)
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(median(handed), "µs/listener")
	b.ReportMetric(median(opened), "opened-µs/listener")
	b.ReportMetric(median(handed)/median(opened), "ratio")
}

// BenchmarkExclusive: the time from SIGUSR2 until the new process accepts, with exclusive state
// whose functions do nothing, of a server at rest. The baseline is the same server without such
// state, for which nothing is done at all: see TestNothingExclusive. Two of these differ, too:
// by how much is how exact the run is. Wanted: 1 ms more, at most.
func BenchmarkExclusive(b *testing.B) {
	const turns = 50
	servers := []*benchedServer{startBenched(b, 1), startBenched(b, 1), startBenched(b, 1, "-exclusive")}
	b.ResetTimer()
	took := make([][]float64, len(servers))
	for turn := range turns + 1 {
		for i := range servers {
			k := (i + turn) % len(servers)
			if t := servers[k].upgrade(b); turn > 0 { // the first one is cold
				took[k] = append(took[k], t)
			}
		}
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(median(took[0]), "none-µs")
	b.ReportMetric(median(took[1])/median(took[0]), "none-ratio")
	b.ReportMetric(median(took[2]), "exclusive-µs")
	b.ReportMetric(median(took[2])/median(took[0]), "ratio")
}

// coldStart gives the microseconds that a first process takes from main to ready.
func coldStart(b *testing.B, listeners int) float64 {
	b.Helper()
	s := &benchedServer{Process: proctest.Start(b, proctest.Command{
		Path: proctest.Build(b, benchServer),
		Args: []string{"-listeners", strconv.Itoa(listeners), "-pidfile", filepath.Join(b.TempDir(), "pid")},
	})}
	ready, begun := s.waitReady(b)
	s.Signal(s.pid, syscall.SIGTERM)
	s.WaitAllGone()
	return float64(ready-begun) / 1e3
}

// BenchmarkExit: from the answer to the last request that the old process has
// until that is gone. The floor is the end of a process of this size that waits
// for nothing but a word. Wanted: 10 ms, at most.
func BenchmarkExit(b *testing.B) {
	const turns = 50
	s := startLoadServer(b, "plain")
	path := proctest.Build(b, benchServer)
	b.ResetTimer()
	var floors, exits []float64
	for range turns {
		floors = append(floors, exitFloor(b, path))
		c := dialRaw(b, "tcp", s.addr["plain"])
		c.send("POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\n\r\n1")
		old, _ := s.beginUpgrade()
		s.WaitLine(fmt.Sprintf(`upgrade done; draining" from=%d`, old))
		c.send("2")
		c.answer()
		begun := clock()
		s.WaitGone(old)
		exits = append(exits, float64(clock()-begun)/1e3)
		c.Close()
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(median(floors), "floor-µs")
	b.ReportMetric(median(exits), "µs")
	b.ReportMetric(slices.Max(exits), "max-µs")
	b.ReportMetric(median(exits)/median(floors), "ratio")
}

// exitFloor gives the microseconds from a word to a process until it is gone.
func exitFloor(b *testing.B, path string) float64 {
	b.Helper()
	cmd := exec.Command(path)
	cmd.Env = append(os.Environ(), "BENCH_FLOOR=1")
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		b.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		b.Fatalf("%s printed %q: %v", path, line, err)
	}
	begun := clock()
	in.Close()
	if err := cmd.Wait(); err != nil {
		b.Fatal(err)
	}
	return float64(clock()-begun) / 1e3
}

// BenchmarkReconnects: the server's processor time for 1,000 TLS clients that come back right
// after an upgrade, each with a request. The baseline is the same with tickets of another
// socket's key: full handshakes, which is what all clients pay if a process makes its own
// keys. Wanted: all resumed, and a ratio below 1.
func BenchmarkReconnects(b *testing.B) {
	const clients, turns = 1000, 10
	for _, kind := range []string{"ecdsa", "rsa"} {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			b.Run(kind+"/"+strings.ReplaceAll(tls.VersionName(version), " ", ""), func(b *testing.B) {
				s, addrs := startTLSServer(b, 2, "-rsa="+strconv.FormatBool(kind == "rsa"))
				configs := make([]*tls.Config, 2*clients)
				for i := range configs {
					configs[i] = returningClient(version)
					comeBack(b, addrs[0], configs[i])
				}
				pid := s.mustUpgrade()
				b.ResetTimer()
				var cost [2]float64 // of what comes to the socket of the ticket, and to the other one
				resumed := 0
				for turn := range turns {
					for where, addr := range addrs {
						begun := cpuTime(b, pid)
						for i := range clients / turns {
							if comeBack(b, addr, configs[where*clients+turn*clients/turns+i]) {
								resumed += 1 + where*clients // none on the other socket
							}
						}
						cost[where] += float64(cpuTime(b, pid)-begun) / 1e6
					}
				}
				if resumed*100 < 95*clients || resumed > clients {
					b.Errorf("%d sessions of %d are resumed", resumed, clients)
				}
				b.ReportMetric(0, "ns/op")
				b.ReportMetric(float64(resumed)*100/clients, "%resumed")
				b.ReportMetric(cost[1], "full-ms")
				b.ReportMetric(cost[0], "ms")
				b.ReportMetric(cost[0]/cost[1], "ratio")
			})
		}
	}
}

// cpuTime is the processor time that a process has used, in nanoseconds: see clock_getres(2)
// and MAKE_PROCESS_CPUCLOCK of the kernel's posix-timers_types.h.
func cpuTime(b *testing.B, pid int) int64 {
	b.Helper()
	const sched = 2
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|sched), &ts); err != nil {
		b.Fatalf("clock of process %d: %v", pid, err)
	}
	return ts.Nano()
}

// BenchmarkMove: idle connections that move from process to process, by what the old
// process logs of its drain: from its beginning until the last one is the new
// process's. Wanted: 50,000 a second, and a time that grows as the number does
// (×1000's: 1). What they could not cost less than is in the package's own
// BenchmarkMove.
func BenchmarkMove(b *testing.B) {
	const turns = 5
	first := 0.0
	for _, n := range []int{1000, 5000, 20000} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			if l := openFilesLimit(b) - 300; l < n {
				b.Logf("RLIMIT_NOFILE: %d connections", l)
				n = l
			}
			var each []float64 // µs
			for range turns {
				m := startMover(b, "-probation", "200ms")
				clients := m.many(n)
				took, _ := m.moveAll(b, m.Pid(), n)
				each = append(each, took)
				m.leave(clients)
			}
			if first == 0 {
				first = median(each)
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(1e6/median(each), "conns/s")
			b.ReportMetric(median(each)/first, "×1000's")
		})
	}
}

// moveAll upgrades the process pid, and gives the microseconds that each of n connections takes
// to move to the next one.
func (m *mover) moveAll(b *testing.B, pid, n int) (each float64, next int) {
	b.Helper()
	next = m.upgradeOf(pid)
	line := m.WaitLine(`msg="grace: drained.* took=(\S+) moved=(\d+)`)
	took, err := time.ParseDuration(line[1])
	if err != nil || atoi(b, line[2]) != n {
		b.Fatalf("%s: want all %d moved; error %v", line[0], n, err)
	}
	m.WaitGone(pid)
	return float64(took.Nanoseconds()) / 1e3 / float64(n), next
}

// leave ends the clients and the server.
func (m *mover) leave(clients []*client) {
	for _, c := range clients {
		c.Close()
	}
	m.Kill()
}

// BenchmarkMoveTLS: the same over TLS 1.3, between processes with HTTPS and MoveTLS: out of
// crypto/tls, and once more out of the record layer that serves a connection that has moved
// (again). The baseline is as many connections without TLS, moved in turns with them: ratio and
// again-ratio are how many times as long one over TLS takes. Wanted: 10,000 a second.
func BenchmarkMoveTLS(b *testing.B) {
	const turns = 5
	for _, n := range []int{1000, 5000} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			if l := openFilesLimit(b) - 300; l < n {
				b.Logf("RLIMIT_NOFILE: %d connections", l)
				n = l
			}
			cert := tlstest.File(b)
			var plain, over, again []float64 // µs
			for range turns {
				m := startMover(b, "-probation", "200ms")
				clients := m.many(n)
				took, _ := m.moveAll(b, m.Pid(), n)
				plain = append(plain, took)
				m.leave(clients)
				m = startMover(b, "-probation", "200ms", "-cert", cert, "-in1", "tls,movetls", "-in2", "tls,movetls")
				clients = m.manyBy(m.dialTLSFrom, n)
				took, pid := m.moveAll(b, m.Pid(), n)
				over = append(over, took)
				took, _ = m.moveAll(b, pid, n)
				again = append(again, took)
				m.leave(clients)
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(1e6/median(plain), "plain/s")
			b.ReportMetric(1e6/median(over), "conns/s")
			b.ReportMetric(1e6/median(again), "again/s")
			b.ReportMetric(median(over)/median(plain), "ratio")
			b.ReportMetric(median(again)/median(plain), "again-ratio")
		})
	}
}
