//go:build linux

// Package dns runs upgrades of a server of github.com/miekg/dns. That answers from the
// address that was asked by itself only on a *net.UDPConn; on what ListenPacket gives it
// relies on ReadFrom and WriteTo for that.
package dns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/julofinance/grace/v3"
	"github.com/julofinance/grace/v3/internal/proctest"
	"github.com/julofinance/grace/v3/internal/testing/netns"
	"github.com/miekg/dns"
)

var library = grace.Serve // so that a cached result is stale when it changes

func TestMain(m *testing.M) {
	runtime.KeepAlive(library)
	proctest.Main(m)
}

// TestAnswers: a server of a wildcard address is upgraded under load, an upgrade is
// rolled back, and each query to each address of the machine is answered, from that
// address: its client sees no other answer.
func TestAnswers(t *testing.T) {
	testAnswers(t, "udp4", "0.0.0.0:0", []string{"127.0.0.2", "127.0.0.1", "127.0.0.3"})
}

// TestAnswersDual is TestAnswers on a socket of both families.
func TestAnswersDual(t *testing.T) {
	if netns.Enter(t, "2001:db8::1/64", "2001:db8::2/64", "fe80::1/64", "fe80::2/64") {
		testAnswers(t, "udp", "[::]:0", []string{"2001:db8::2", "2001:db8::1", "fe80::2%lo", "127.0.0.2"})
	}
}

func testAnswers(t *testing.T, network, addr string, hosts []string) {
	p := proctest.Start(t, proctest.Command{
		Path: proctest.Build(t, "./server"),
		Args: []string{"-network", network, "-addr", addr, "-work", "2ms", "-pidfile", filepath.Join(t.TempDir(), "pid")},
	})
	m := p.WaitLine(`^listening (\S+) (\S+)`)
	p.WaitLine(`msg="grace: serving"`)
	l := startLoad(t, hosts, port(t, m[1]), port(t, m[2]))
	old := p.Pid()
	l.waitAnswers(old)

	upgrade := func() (fresh int) {
		t.Helper()
		p.Signal(old, syscall.SIGUSR2)
		m := p.WaitLine(fmt.Sprintf(`msg="grace: the new process is ready; standing by".*from=%d.*new=(\d+)`, old))
		fresh, _ = strconv.Atoi(m[1])
		return fresh
	}
	for range 2 {
		fresh := upgrade()
		l.waitAnswers(fresh)
		p.WaitGone(old)
		old = fresh
	}

	// What the new process has read when it is killed is lost with it. So that it has
	// read nothing, it is stopped while no query is under way.
	fresh := upgrade()
	l.waitAnswers(fresh)
	l.pause.Lock()
	p.Halt(fresh)
	l.pause.Unlock()
	proctest.WaitFor(t, proctest.Limit, "all clients to wait for an answer", func() bool { return l.waiting.Load() == l.clients })
	p.Signal(fresh, syscall.SIGKILL)
	p.WaitLine(fmt.Sprintf(`msg="grace: rolled back; this process accepts again".*from=%d`, old))
	l.waitAnswers(old)

	fresh = upgrade()
	l.waitAnswers(fresh)
	p.WaitGone(old)
	l.waitAnswers(fresh)
	l.stop()
	if l.failed.Load() == 0 {
		t.Logf("%d answers, each from the address that was asked", l.total())
	}
}

func port(t *testing.T, addr string) string {
	t.Helper()
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// A load asks all the time, over UDP and TCP, and notes which process answers.
type load struct {
	t       *testing.T
	clients int64
	waiting atomic.Int64 // clients that wait for an answer
	failed  atomic.Int64
	done    chan struct{}
	once    sync.Once // closes done
	all     sync.WaitGroup
	pause   sync.RWMutex // held by each client for as long as a query is under way

	mu      sync.Mutex
	answers map[string]map[int]int // by what was asked, by the pid that has answered
}

// startLoad starts a few clients for each host.
func startLoad(t *testing.T, hosts []string, udpPort, tcpPort string) *load {
	l := &load{t: t, done: make(chan struct{}), answers: map[string]map[int]int{}}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, host := range hosts {
		for _, network := range []string{"udp", "udp", "udp", "tcp"} {
			addr := net.JoinHostPort(host, map[string]string{"udp": udpPort, "tcp": tcpPort}[network])
			if l.answers[network+" "+addr] == nil {
				l.answers[network+" "+addr] = map[int]int{}
			}
			l.clients++
			l.all.Go(func() { l.ask(network, addr) })
		}
	}
	t.Cleanup(l.stop)
	return l
}

func (l *load) stop() {
	l.once.Do(func() { close(l.done) })
	l.all.Wait()
}

// ask asks again and again, each time from another port.
func (l *load) ask(network, addr string) {
	for id := uint16(1); ; id++ {
		select {
		case <-l.done:
			return
		default:
		}
		l.pause.RLock()
		pid, err := l.query(network, addr, id)
		l.pause.RUnlock()
		if err != nil {
			l.failed.Add(1)
			l.t.Errorf("%s %s: %v", network, addr, err)
			return
		}
		l.mu.Lock()
		l.answers[network+" "+addr][pid]++
		l.mu.Unlock()
	}
}

// clientAddr is where a client asks addr from: another address than that. The kernel
// would choose the client's own for an answer that need not leave the machine.
func clientAddr(network, addr string) net.Addr {
	from := "127.0.0.1:0"
	switch {
	case strings.HasPrefix(addr, "[fe80:"):
		from = "[fe80::1%lo]:0"
	case strings.HasPrefix(addr, "["):
		from = "[2001:db8::1]:0"
	}
	if network == "tcp" {
		return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(from))
	}
	return net.UDPAddrFromAddrPort(netip.MustParseAddrPort(from))
}

// query asks once, and gives the pid that answers.
func (l *load) query(network, addr string, id uint16) (pid int, err error) {
	d := net.Dialer{LocalAddr: clientAddr(network, addr)}
	conn, err := d.Dial(network, addr)
	if err != nil {
		return 0, err
	}
	c := &dns.Conn{Conn: conn}
	defer c.Close()
	c.SetDeadline(time.Now().Add(proctest.Limit))
	q := new(dns.Msg)
	q.SetQuestion(fmt.Sprintf("q%d.test.", id), dns.TypeTXT)
	q.Id = id
	if err := c.WriteMsg(q); err != nil {
		return 0, err
	}
	l.waiting.Add(1)
	defer l.waiting.Add(-1)
	a, err := c.ReadMsg()
	if err != nil {
		return 0, fmt.Errorf("no answer from there: %w", err)
	}
	if a.Id != id || len(a.Answer) != 1 || a.Answer[0].Header().Name != q.Question[0].Name {
		return 0, fmt.Errorf("the answer to %v is %v", q, a)
	}
	txt, ok := a.Answer[0].(*dns.TXT)
	if !ok || len(txt.Txt) != 1 {
		return 0, errors.New("the answer is no text: " + a.String())
	}
	return strconv.Atoi(txt.Txt[0])
}

// waitAnswers waits until the process pid has given more answers than so far, to each
// address and over each network.
func (l *load) waitAnswers(pid int) {
	l.t.Helper()
	before := l.of(pid)
	proctest.WaitFor(l.t, 2*proctest.Limit, fmt.Sprintf("process %d to answer at each address", pid), func() bool {
		if l.failed.Load() > 0 {
			l.t.FailNow()
		}
		now := l.of(pid)
		for at := range now {
			if now[at] <= before[at] {
				return false
			}
		}
		return true
	})
}

func (l *load) of(pid int) map[string]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	of := map[string]int{}
	for at, by := range l.answers {
		of[at] = by[pid]
	}
	return of
}

func (l *load) total() (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, by := range l.answers {
		for _, of := range by {
			n += of
		}
	}
	return n
}
