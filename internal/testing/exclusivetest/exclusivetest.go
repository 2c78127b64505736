//go:build linux

// Package exclusivetest puts a program under load that keeps what clients give it in
// something that one process at a time may have, while the program is upgraded, and counts
// what is lost: requests, and entries whose writing was acknowledged.
package exclusivetest

import (
	"crypto/tls"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/proctest"
)

// A Server is a running program. It prints "listening", and the addresses of HTTP and, as
// far as it has them, of its lines, HTTPS, HTTP/2 without TLS, and UDP, in this order. POST
// /add adds the body as an entry, GET /all gives all.
type Server struct {
	*proctest.Process
	t       *testing.T
	binary  string // what an upgrade starts
	pidFile string

	HTTP, Lines, HTTPS, H2C, UDP string

	Trust *tls.Config // of clients of HTTPS
}

// Start starts the program at path, with these arguments; FILE in them is a file of the
// test's own.
func Start(t *testing.T, path string, args ...string) *Server {
	t.Helper()
	dir := t.TempDir()
	s := &Server{t: t, binary: filepath.Join(dir, "app"), pidFile: filepath.Join(dir, "app.pid")}
	s.Install(path)
	args = slices.Clone(args)
	for i := range args {
		args[i] = strings.ReplaceAll(args[i], "FILE", filepath.Join(dir, "state"))
	}
	s.Process = proctest.Start(t, proctest.Command{Path: s.binary, Args: args, Env: []string{"GRACE_PIDFILE=" + s.pidFile}})
	addrs := strings.Fields(s.WaitLine(`^listening (.+)`)[1])
	for i, addr := range []*string{&s.HTTP, &s.Lines, &s.HTTPS, &s.H2C, &s.UDP} {
		if i < len(addrs) {
			*addr = addrs[i]
		}
	}
	s.WaitLine(`grace: serving`)
	return s
}

// Install puts another version in place.
func (s *Server) Install(path string) {
	s.t.Helper()
	next := s.binary + ".new"
	os.Remove(next)
	err := os.Link(path, next)
	if err != nil { // another file system
		var b []byte
		if b, err = os.ReadFile(path); err == nil {
			err = os.WriteFile(next, b, 0o755)
		}
	}
	if err == nil {
		err = os.Rename(next, s.binary)
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// FilePid is the pid in the PID file.
func (s *Server) FilePid() int {
	s.t.Helper()
	b, err := os.ReadFile(s.pidFile)
	pid, err2 := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || err2 != nil {
		s.t.Fatal("the PID file:", err, err2)
	}
	return pid
}

// Ask asks for an upgrade.
func (s *Server) Ask() (old int) {
	s.t.Helper()
	old = s.FilePid()
	s.Signal(old, syscall.SIGUSR2)
	return old
}

// Upgrade upgrades, and returns when the old process is gone.
func (s *Server) Upgrade() {
	s.t.Helper()
	old := s.Ask()
	s.WaitGone(old)
	if now := s.FilePid(); now == old {
		s.t.Fatalf("the process %d has ended, and the PID file names it", old)
	}
}

// Entries are all that the server has.
func (s *Server) Entries() map[string]int {
	s.t.Helper()
	resp, err := http.Get("http://" + s.HTTP + "/all")
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		s.t.Fatal(resp.Status, err)
	}
	all := map[string]int{}
	for entry := range strings.FieldsSeq(string(b)) {
		all[entry]++
	}
	return all
}

// A Load is clients at work. Each sends an entry, and waits for its answer.
type Load struct {
	s    *Server
	stop chan struct{}
	wg   sync.WaitGroup
	n    atomic.Int64

	mu     sync.Mutex // guards what follows
	acked  []string
	kinds  map[string]int // of acked, by the kind of client
	lost   []string
	worst  time.Duration // since Pause was called last
	pauses []time.Duration
}

// Clients are how many there are of each kind.
type Clients struct {
	KeepAlive, Connect, Lines int

	HTTPS, HTTP2, H2C, UDP int // HTTP2 is that over TLS
}

func (c Clients) all() int {
	return c.KeepAlive + c.Connect + c.Lines + c.HTTPS + c.HTTP2 + c.H2C + c.UDP
}

// Load starts the clients.
func (s *Server) Load(c Clients) *Load {
	l := &Load{s: s, stop: make(chan struct{}), kinds: map[string]int{}}
	tcp := func(addr string) func() (net.Conn, error) {
		return func() (net.Conn, error) { return net.Dial("tcp", addr) }
	}
	start := func(n int, kind string, one func() client) {
		if n > 0 {
			l.kinds[kind] = 0
		}
		for range n {
			l.wg.Go(func() { l.run(kind, one()) })
		}
	}
	start(c.KeepAlive, "keep-alive", func() client { return &webClient{dialed: dialed{dial: tcp(s.HTTP)}} })
	start(c.Connect, "connect", func() client { return &webClient{dialed: dialed{dial: tcp(s.HTTP)}, once: true} })
	start(c.Lines, "lines", func() client { return &lineClient{dialed: dialed{dial: tcp(s.Lines)}, halves: true} })
	start(c.HTTPS, "HTTPS", func() client { return &webClient{dialed: dialed{dial: s.secure("http/1.1")}} })
	start(c.HTTP2, "HTTP/2", func() client { return newHTTP2(s.secure("h2")) })
	start(c.H2C, "h2c", func() client { return newHTTP2(tcp(s.H2C)) })
	start(c.UDP, "UDP", func() client {
		return &lineClient{dialed: dialed{dial: func() (net.Conn, error) { return net.Dial("udp", s.UDP) }}}
	})
	return l
}

// secure connects to HTTPS.
func (s *Server) secure(proto string) func() (net.Conn, error) {
	return func() (net.Conn, error) {
		trust := s.Trust.Clone()
		trust.NextProtos = []string{proto}
		d := tls.Dialer{NetDialer: &net.Dialer{Timeout: limit}, Config: trust}
		return d.Dial("tcp", s.HTTPS)
	}
}

// entryPrefix begins each entry.
const entryPrefix = "entry-"

type client interface {
	add(entry string) error
	close()
}

func (l *Load) run(kind string, c client) {
	defer c.close()
	for {
		select {
		case <-l.stop:
			return
		case <-time.After(rand.N(10 * time.Millisecond)):
		}
		entry := fmt.Sprint(entryPrefix, l.n.Add(1))
		begun := time.Now()
		err := c.add(entry)
		took := time.Since(begun)
		l.mu.Lock()
		if err != nil {
			l.lost = append(l.lost, fmt.Sprintf("%s of %s, after %v: %v", entry, kind, took, err))
		} else {
			l.acked = append(l.acked, entry)
			l.kinds[kind]++
		}
		l.worst = max(l.worst, took)
		l.mu.Unlock()
	}
}

// Pause notes the longest time that a client had to wait since the last call.
func (l *Load) Pause() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pauses = append(l.pauses, l.worst)
	l.worst = 0
}

// Forget forgets the longest time so far.
func (l *Load) Forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.worst = 0
}

// allow takes no more than n requests that were lost so far for unavoidable.
func (l *Load) allow(name string, n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.s.t.Logf("%s: requests lost %d, of %d clients", name, len(l.lost), n)
	if len(l.lost) <= n {
		l.lost = nil
	}
}

// WaitMore waits until n more entries were acknowledged, of each kind one at least.
func (l *Load) WaitMore(n int) {
	l.s.t.Helper()
	l.mu.Lock()
	all, kinds := len(l.acked), maps.Clone(l.kinds)
	l.mu.Unlock()
	if !proctest.Poll(proctest.Limit, func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		for kind, before := range kinds {
			if l.kinds[kind] == before {
				return false
			}
		}
		return len(l.acked) >= all+n
	}) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.s.t.Fatalf("waited %v in vain for %d more answers than %d, and more of each kind than %v: %d, %v; lost: %q",
			proctest.Limit, n, all, kinds, len(l.acked), l.kinds, l.lost[:min(len(l.lost), 3)])
	}
}

// Stop ends the load, and fails the test if anything was lost. It logs the figures.
func (l *Load) Stop() {
	t := l.s.t
	t.Helper()
	close(l.stop)
	l.wg.Wait()
	has := l.s.Entries()
	missing, twice := 0, 0
	for _, entry := range l.acked {
		switch has[entry] {
		case 0:
			missing++
		case 1:
		default:
			twice++
		}
	}
	for i, lost := range l.lost {
		if i < 10 {
			t.Error("lost:", lost)
		}
	}
	figures := fmt.Sprintf("requests %d, lost %d; acknowledged writes %d, lost %d", len(l.acked)+len(l.lost), len(l.lost), len(l.acked), missing)
	if len(l.pauses) > 0 {
		slices.Sort(l.pauses)
		figures += fmt.Sprintf("; %d upgrades, longest wait in each: p50 %v, max %v", len(l.pauses),
			l.pauses[len(l.pauses)/2].Round(100*time.Microsecond), l.pauses[len(l.pauses)-1].Round(100*time.Microsecond))
	}
	var paused []time.Duration // as the old processes have seen it, until the new one accepted
	for _, line := range l.s.Process.Lines() {
		if _, after, ok := strings.Cut(line, " paused="); ok {
			d, _ := time.ParseDuration(strings.Fields(after)[0])
			paused = append(paused, d)
		}
	}
	if slices.Sort(paused); len(paused) > 0 {
		figures += fmt.Sprintf("; paused: p50 %v, max %v", paused[len(paused)/2].Round(100*time.Microsecond), paused[len(paused)-1].Round(100*time.Microsecond))
	}
	t.Logf("%s; by kind of client: %v", figures, l.kinds)
	if len(l.lost) > 0 || missing > 0 || twice > 0 || len(l.acked) == 0 {
		t.Errorf("%d requests were lost, %d acknowledged writes were lost, %d are there twice, of %d", len(l.lost), missing, twice, len(l.acked))
	}
}

// limit is how long an answer may take.
const limit = 60 * time.Second

// A Version is one that fails, and what is to be seen then.
type Version struct {
	Name string
	Path string // of the binary
	Line string // that the old process logs when it serves again
	// Dies is true if it dies when it serves: what is inside of it then is lost, which is
	// one request of each client at most.
	Dies bool
}

// Upgrades upgrades n times under load.
func Upgrades(s *Server, c Clients, n int) {
	s.t.Helper()
	l := s.Load(c)
	l.WaitMore(100)
	for range n {
		l.Forget()
		s.Upgrade()
		l.WaitMore(20)
		l.Pause()
	}
	l.Stop()
}

// Broken upgrades to each of the versions that fail, under load, and to one that does not
// at the end.
func Broken(s *Server, c Clients, good string, bad ...Version) {
	s.t.Helper()
	l := s.Load(c)
	l.WaitMore(100)
	for _, v := range bad {
		s.Install(v.Path)
		l.Forget()
		old := s.Ask()
		s.WaitLine(v.Line)
		l.WaitMore(100)
		if now := s.FilePid(); now != old {
			s.t.Fatalf("%s: the PID file names %d, and %d serves", v.Name, now, old)
		}
		l.Pause()
		if v.Dies {
			l.allow(v.Name, c.all())
		}
	}
	s.Install(good)
	s.Upgrade()
	l.WaitMore(100)
	l.Stop()
}

// A Store is a program whose test this is: it serves HTTP, and main.broken says how a
// version of it fails.
type Store struct {
	// Broken is what a version says that can't open its state.
	Broken string
}

func (p Store) start(t *testing.T, more ...string) (s *Server, path string) {
	path = proctest.Build(t, ".")
	return Start(t, path, append([]string{"-http", "127.0.0.1:0", "-file", "FILE", "-probation", "50ms"}, more...)...), path
}

// version builds one that fails in this way.
func (p Store) version(t *testing.T, broken string) string {
	return proctest.Build(t, ".", "-ldflags=-X 'main.broken="+broken+"'")
}

var storeClients = Clients{KeepAlive: 8, Connect: 3}

// Upgrades is [Upgrades], 20 of them.
func (p Store) Upgrades(t *testing.T) {
	s, _ := p.start(t)
	Upgrades(s, storeClients, 20)
}

const (
	failed = `grace: upgrade failed; this process goes on serving`
	back   = `grace: rolled back; this process accepts again`
)

// BrokenVersion is [Broken], for a version that can't open its state.
func (p Store) BrokenVersion(t *testing.T) {
	s, good := p.start(t)
	Broken(s, storeClients, good, Version{Name: "open fails", Path: p.version(t, "open"), Line: failed + `.*` + p.Broken})
}

// DyingVersions is [Broken], for versions that die when they have opened their state: before
// they serve, and when they do. It is for a program that acknowledges nothing before it is
// on the disk.
func (p Store) DyingVersions(t *testing.T) {
	s, good := p.start(t, "-probation", "300ms")
	Broken(s, storeClients, good,
		Version{Name: "it dies in open", Path: p.version(t, "die"), Line: failed},
		Version{Name: "it dies in probation", Path: p.version(t, "die later"), Line: back, Dies: true},
	)
}
