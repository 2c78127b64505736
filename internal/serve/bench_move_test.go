//go:build linux

package serve

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/control"
	"github.com/julofinance/grace/v3/internal/fd"
	"github.com/julofinance/grace/v3/internal/sockets"
	"github.com/julofinance/grace/v3/internal/testing/wait"
	"golang.org/x/sys/unix"
)

// BenchmarkMove moves idle HTTP connections from one process to another, here two
// halves of one: what both do is paid for by one scheduler. It prints connections per
// second; the processor time of one, divided by what the same connections cost when
// their descriptors alone are sent, made a net.Conn and closed in the sender, which no
// implementation could do without; and how much more of it one of 20,000 takes than one
// of 1,000: 1 is linear.
func BenchmarkMove(b *testing.B) {
	perConn := map[int]time.Duration{}
	for _, n := range []int{1000, 5000, 20000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			// The old process's end and the new one's are in this process's table,
			// those that are on their way twice.
			if l := int(filesLimit(b)); n+1000 > l {
				n = l - 1000
				b.Logf("RLIMIT_NOFILE is %d: %d connections", l, n)
			}
			var total, cpu, floor time.Duration
			for range b.N {
				t, c, f := moveMany(b, n)
				total, cpu, floor = total+t, cpu+c, floor+f
			}
			cpu /= time.Duration(b.N * n)
			per := total / time.Duration(b.N*n)
			perConn[n] = cpu
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(float64(time.Second)/float64(per), "conns/s")
			b.ReportMetric(float64(cpu), "cpu-ns/conn")
			b.ReportMetric(float64(cpu)/(float64(floor)/float64(b.N)), "ratio")
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

func moveMany(b *testing.B, n int) (took, cpu, floor time.Duration) {
	b.StopTimer()
	p := newCouple(b, func(side string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, side) })
	})
	p.runOld()
	p.runNew()
	growTable(b)
	end := startIdleClients(b, p.old.l.Addr().String(), n)
	defer end()
	runtime.GC()
	b.StartTimer()
	begun, before := time.Now(), cpuTime(b)
	_, done := p.drain()
	wait.For(b, done, "all to move")
	took, cpu = time.Since(begun), cpuTime(b)-before
	b.StopTimer()
	if moved := p.mover.Count(); moved != n {
		b.Fatalf("moved %d of %d", moved, n)
	}
	tracks := p.new.l.Live.All
	p.await("all to be the new process's", func() bool { return len(tracks()) == n })
	return took, cpu, sendFloor(b, tracks()[:min(n, 900)]) // the table has room for these
}

// sendFloor sends copies of the connections' descriptors through a socket, and
// gives the processor time that one takes.
func sendFloor(b *testing.B, tracks []*sockets.Track) time.Duration {
	b.Helper()
	from, theirs, err := control.Pair()
	if err != nil {
		b.Fatal(err)
	}
	to, err := fd.NewUnixConn(theirs)
	if err != nil {
		b.Fatal(err)
	}
	defer from.Close()
	defer to.Close()
	var copies []int
	for _, t := range tracks {
		n, err := fd.Of(t.Inner)
		if err == nil {
			n, err = unix.FcntlInt(uintptr(n), unix.F_DUPFD_CLOEXEC, 0)
		}
		if err != nil {
			b.Fatal(err)
		}
		copies = append(copies, n)
	}
	received := make([]net.Conn, 0, len(copies))
	oob := make([]byte, unix.CmsgSpace(4*sockets.BatchConns))
	before := cpuTime(b)
	for batch := range slices.Chunk(copies, sockets.BatchConns) {
		if _, _, err := from.WriteMsgUnix([]byte{0}, unix.UnixRights(batch...), nil); err != nil {
			b.Fatal(err)
		}
		fd.CloseAll(batch)
		_, n, _, _, err := to.ReadMsgUnix(make([]byte, 1), oob)
		if err != nil {
			b.Fatal(err)
		}
		fds := parseRights(b, oob[:n])
		for _, fd := range fds {
			f := os.NewFile(uintptr(fd), "")
			c, err := net.FileConn(f)
			f.Close()
			if err != nil {
				b.Fatal(err)
			}
			received = append(received, c)
		}
	}
	took := cpuTime(b) - before
	for _, c := range received {
		c.Close()
	}
	return took / time.Duration(len(tracks))
}

func parseRights(b *testing.B, oob []byte) (fds []int) {
	b.Helper()
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		b.Fatal(err)
	}
	for _, m := range messages {
		more, err := unix.ParseUnixRights(&m)
		if err != nil {
			b.Fatal(err)
		}
		fds = append(fds, more...)
	}
	return fds
}

// growTable lets the kernel make the table of open files as large as it will be. To
// grow it later, while other threads use it, takes the kernel many milliseconds. A new
// process has one as large as the old one's from the start: fork copies that.
func growTable(b *testing.B) {
	b.Helper()
	fd, err := unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, int(filesLimit(b))-1)
	if err != nil {
		b.Fatal(err)
	}
	unix.Close(fd)
}

// Clients have a process of their own, which is this program with these
// variables: their ends would fill the table of open files.
const idleClientsOf, idleClients = "GRACE_BENCH_CLIENTS_OF", "GRACE_BENCH_CLIENTS"

// startIdleClients starts n clients that have asked once, and gives what ends them.
func startIdleClients(b *testing.B, addr string, n int) (end func()) {
	b.Helper()
	cmd := exec.CommandContext(b.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), idleClientsOf+"="+addr, fmt.Sprint(idleClients, "=", n))
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
	if line, _ := bufio.NewReader(out).ReadString('\n'); line != "idle\n" {
		b.Fatalf("the clients say %q", line)
	}
	return func() { in.Close(); cmd.Wait() }
}

func beIdleClients(addr, count string) error {
	n, err := strconv.Atoi(count)
	if err != nil {
		return err
	}
	for range n {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			return err
		}
		c.(*net.TCPConn).SetLinger(0) // no port is to wait for its time to pass
		defer c.Close()
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: grace\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReaderSize(c, 256), nil)
		if err != nil {
			return err
		}
		resp.Body.Close()
	}
	fmt.Println("idle")
	io.Copy(io.Discard, os.Stdin)
	return nil
}

func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
