//go:build linux

package integration_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/proctest"
)

// What tableflip's documentation promises, kept by compat/tableflip. Each process
// of ./tableflip does what it is told to: see there.

// Flips are the processes of a service of ./tableflip.
type flips struct {
	t   *testing.T
	p   *proctest.Process
	dir string
}

// startFlip starts a first process, which has called New with these options.
func startFlip(t *testing.T, options string) (*flips, *flipper) {
	t.Helper()
	f := &flips{t: t, dir: t.TempDir()}
	f.p = proctest.Start(t, proctest.Command{Path: proctest.Build(t, "./tableflip"), Args: []string{f.dir}})
	first := f.born()
	first.want("ok", "new %s", options)
	return f, first
}

// born waits for the next process.
func (f *flips) born() *flipper {
	f.t.Helper()
	pid, _ := strconv.Atoi(f.p.WaitLine(`^born pid=(\d+)$`)[1])
	return &flipper{f, pid}
}

func (f *flips) path(name string) string { return filepath.Join(f.dir, name) }

func (f *flips) exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// get asks an HTTP server which process it is.
func (f *flips) get(network, addr string) int {
	f.t.Helper()
	c, err := net.DialTimeout(network, addr, proctest.Limit)
	if err != nil {
		f.t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(proctest.Limit))
	fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	b, err := io.ReadAll(c)
	_, after, _ := strings.Cut(string(b), "pid=")
	pid, _ := strconv.Atoi(after)
	if err != nil || pid == 0 {
		f.t.Fatalf("GET %s %s: %q, %v", network, addr, b, err)
	}
	return pid
}

type flipper struct {
	*flips
	pid int
}

// do lets the process do something, and gives what came of it.
func (p *flipper) do(format string, args ...any) string {
	p.t.Helper()
	result, err := p.try(fmt.Sprintf(format, args...))
	if err != nil {
		p.t.Fatal(err)
	}
	return result
}

func (p *flipper) try(command string) (string, error) {
	c, err := net.Dial("unix", p.path(fmt.Sprint(p.pid)))
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(proctest.Limit))
	fmt.Fprintln(c, command)
	b, err := io.ReadAll(c)
	if err != nil {
		return "", fmt.Errorf("%s of process %d: %q, %w", command, p.pid, b, err)
	}
	return string(b), nil
}

// begin lets the process do something that waits.
func (p *flipper) begin(command string) <-chan string {
	done := make(chan string, 1)
	go func() {
		result, err := p.try(command)
		if err != nil {
			result = "none: " + err.Error()
		}
		done <- result
	}()
	return done
}

// want lets it do something of which that result is expected; "error" is any one.
func (p *flipper) want(want, format string, args ...any) {
	p.t.Helper()
	got := p.do(format, args...)
	if got != want && (want != "error" || !strings.HasPrefix(got, "error: ")) {
		p.t.Fatalf("%s of process %d gave %q, want %q", fmt.Sprintf(format, args...), p.pid, got, want)
	}
}

func (p *flipper) result(done <-chan string, want string) {
	p.t.Helper()
	select {
	case got := <-done:
		if got != want && (want != "error" || !strings.HasPrefix(got, "error: ")) {
			p.t.Fatalf("process %d gave %q, want %q", p.pid, got, want)
		}
	case <-time.After(proctest.Limit):
		p.t.Fatalf("process %d gave nothing within %v, want %q", p.pid, proctest.Limit, want)
	}
}

// die ends the process with this status; its answer does not come.
func (p *flipper) die(status int) {
	p.t.Helper()
	p.try(fmt.Sprintf("die %d", status))
	p.p.WaitGone(p.pid)
}

// next upgrades p, which must be ready. prepare lets the new process do something
// between New and Ready. It gives that once the old one has exited.
func (p *flipper) next(options string, prepare func(*flipper)) *flipper {
	p.t.Helper()
	done := p.begin("upgrade")
	n := p.born()
	n.want("ok", "new %s", options)
	if prepare != nil {
		prepare(n)
	}
	n.want("ok", "ready")
	p.result(done, "ok")
	p.want("ok", "waitexit")
	p.die(0)
	n.want("ok", "waitparent")
	return n
}

func TestTableflipOnlyOneNew(t *testing.T) {
	_, p := startFlip(t, "")
	p.want("error", "new")
	p.want("ok", "ready")
	p.want("ok", "stop")
	p.want("ok", "waitexit")
	p.want("error", "new")
}

func TestTableflipUpgrade(t *testing.T) {
	_, p := startFlip(t, "")
	addr := p.do("listen a tcp 127.0.0.1:0")
	p.want("ok", "serve a")
	p.want("error", "upgrade") // before Ready
	p.want("ok", "ready")
	p.want("false", "hasparent")
	p.want("ok", "waitparent")
	for range 3 {
		if got := p.get("tcp", addr); got != p.pid {
			t.Fatalf("process %d answers, want %d", got, p.pid)
		}
		done := p.begin("upgrade")
		n := p.born()
		n.want("ok", "new")
		n.want("true", "hasparent")
		n.want(addr, "listen a tcp 127.0.0.1:0")
		n.want("ok", "serve a")
		p.want("error", "upgrade") // only one at a time
		n.want("error", "upgrade") // of a process that is not ready
		if got := p.get("tcp", addr); got != p.pid {
			t.Fatalf("process %d answers before the new one is ready, want %d", got, p.pid)
		}
		p.want("false", "exiting")
		n.want("ok", "ready")
		n.want("ok", "ready") // again: nothing happens
		p.result(done, "ok")
		p.want("ok", "waitexit")
		p.want("error", "upgrade")
		if got := n.get("tcp", addr); got != n.pid {
			t.Fatalf("process %d answers, want %d", got, n.pid)
		}
		// The old one lives: the new one knows, and may not be upgraded.
		n.want("error: context canceled", "waitparent canceled")
		n.want("error", "upgrade")
		wait := n.begin("waitparent")
		// Nothing but Close has ended Serve there.
		if c := p.p.Count(fmt.Sprintf(`^served .*pid=%d`, p.pid)); c != 0 {
			t.Fatal("Serve of the old process has ended before its listener was closed")
		}
		p.want("ok", "close a")
		p.p.WaitLine(fmt.Sprintf(`^served a pid=%d: accept tcp .*: use of closed network connection$`, p.pid))
		p.want("ok", "stop") // as a deferred one: the new one serves on
		p.die(0)
		n.result(wait, "ok")
		n.want("true", "hasparent")
		p = n
	}
}

// TestTableflipUpgradeAtTheEndOfTheOldProcess: a caller that has seen that end may be faster
// than the new process, which was stopped meanwhile.
func TestTableflipUpgradeAtTheEndOfTheOldProcess(t *testing.T) {
	_, p := startFlip(t, "")
	p.want("ok", "ready")
	done := p.begin("upgrade")
	n := p.born()
	n.want("ok", "new")
	n.want("ok", "ready")
	p.result(done, "ok")
	n.p.Halt(n.pid)
	p.die(0)
	done = n.begin("upgrade")
	n.p.Signal(n.pid, syscall.SIGCONT)
	next := n.born()
	next.want("ok", "new")
	next.want("ok", "ready")
	n.result(done, "ok")
	n.die(0)
}

// TestTableflipKilledParent: for WaitForParent a process that was killed has exited.
func TestTableflipKilledParent(t *testing.T) {
	_, p := startFlip(t, "")
	p.want("ok", "ready")
	done := p.begin("upgrade")
	n := p.born()
	n.want("ok", "new")
	n.want("ok", "ready")
	p.result(done, "ok")
	wait := n.begin("waitparent")
	p.p.Signal(p.pid, syscall.SIGKILL)
	n.result(wait, "ok")
	n.want("true", "hasparent")
	n.next("", nil)
}

func TestTableflipFailedUpgrades(t *testing.T) {
	_, p := startFlip(t, "timeout=1h")
	addr := p.do("listen a tcp 127.0.0.1:0")
	p.want("ok", "serve a")
	p.want("ok", "ready")
	fails := map[string]func(n *flipper){
		"exits with 1":       func(n *flipper) { n.die(1) },
		"exits with 0":       func(n *flipper) { n.die(0) },
		"exits after New":    func(n *flipper) { n.want("ok", "new"); n.die(1) },
		"is killed":          func(n *flipper) { n.want("ok", "new"); n.p.Signal(n.pid, syscall.SIGKILL) },
		"stops before Ready": func(n *flipper) { n.want("ok", "new"); n.want("ok", "stop"); n.die(0) },
		"exits while it serves": func(n *flipper) {
			n.want("ok", "new")
			n.want(addr, "listen a tcp 127.0.0.1:0")
			n.want("ok", "serve a")
			if got := n.get("tcp", addr); got != p.pid { // it has accepted nothing that could get lost
				t.Fatalf("process %d answers, want %d", got, p.pid)
			}
			n.die(2)
		},
	}
	for name, fail := range fails {
		t.Run(name, func(t *testing.T) {
			done := p.begin("upgrade")
			n := p.born()
			fail(n)
			p.result(done, "error")
			p.p.WaitGone(n.pid)
			p.want("false", "exiting")
			if got := p.get("tcp", addr); got != p.pid {
				t.Fatalf("process %d answers, want %d", got, p.pid)
			}
		})
	}
	p.next("", nil)
}

func TestTableflipUpgradeTimeout(t *testing.T) {
	_, p := startFlip(t, "timeout=200ms")
	p.want("ok", "ready")
	got := p.do("upgrade") // of a process that is never ready
	m := regexp.MustCompile(`^error: .*\(pid (\d+), signal: killed\)`).FindStringSubmatch(got)
	if m == nil {
		t.Fatalf("Upgrade gave %q", got)
	}
	p.p.WaitGone(atoi(t, m[1]))
	p.want("false", "exiting")
}

func TestTableflipStop(t *testing.T) {
	f, p := startFlip(t, "")
	for kind, network := range map[string]string{"listen": "unix", "listencallback": "unix", "addlistener": "unix", "listenpacket": "unixgram"} {
		p.do("%s %s %s %s", kind, kind, network, f.path(kind))
		if !f.exists(f.path(kind)) {
			t.Fatalf("%s has made no %s", kind, f.path(kind))
		}
		p.want("ok", "close %s", kind)
		if !f.exists(f.path(kind)) {
			t.Fatalf("what %s has made went with Close; it is the Upgrader's", kind)
		}
	}
	addr := p.do("listen a tcp 127.0.0.1:0")
	p.want("ok", "serve a")
	p.want("ok", "ready")
	// A running Upgrade is interrupted, and its process killed.
	done := p.begin("upgrade")
	n := p.born()
	n.want("ok", "new")
	p.want("ok", "stop")
	p.result(done, "error")
	p.p.WaitGone(n.pid)
	p.want("ok", "waitexit")
	p.want("ok", "stop") // again: nothing happens
	p.want("error", "upgrade")
	for _, kind := range []string{"listen", "listencallback", "addlistener", "listenpacket"} {
		if f.exists(f.path(kind)) {
			t.Errorf("the path of %s is left", kind)
		}
	}
	if c, err := net.Dial("tcp", addr); err == nil {
		c.Close()
		t.Errorf("%s still takes connections after Stop", addr)
	}
	// The end is the program's: Serve has not ended.
	if c := p.p.Count(`^served`); c != 0 {
		t.Error("Serve has ended before the listener was closed")
	}
}

// TestTableflipStopInTheOldProcess: the paths are the new process's.
func TestTableflipStopInTheOldProcess(t *testing.T) {
	f, p := startFlip(t, "")
	for kind, network := range map[string]string{"listen": "unix", "addlistener": "unix", "listenpacket": "unixgram"} {
		p.do("%s %s %s %s", kind, kind, network, f.path(kind))
	}
	p.want("ok", "ready")
	done := p.begin("upgrade")
	n := p.born()
	n.want("ok", "new")
	n.do("listener a unix %s", f.path("listen"))
	n.do("listener b unix %s", f.path("addlistener"))
	n.do("packetconn c unixgram %s", f.path("listenpacket"))
	n.want("ok", "ready")
	p.result(done, "ok")
	p.want("ok", "stop")
	p.want("ok", "waitexit")
	for _, kind := range []string{"listen", "addlistener", "listenpacket"} {
		if !f.exists(f.path(kind)) {
			t.Errorf("the path of %s is gone with the old process", kind)
		}
	}
	p.die(0)
}

func TestTableflipPIDFile(t *testing.T) {
	f := &flips{dir: t.TempDir()}
	pidFile := f.path("app.pid")
	_, p := startFlip(t, "pidfile="+pidFile)
	check := func(want int) {
		t.Helper()
		if b, err := os.ReadFile(pidFile); err != nil || strings.TrimSpace(string(b)) != fmt.Sprint(want) {
			t.Fatalf("the PID file has %q, %v, want %d", b, err, want)
		}
	}
	p.want("ok", "ready")
	check(p.pid)
	n := p.next("pidfile="+pidFile, func(*flipper) { check(p.pid) })
	check(n.pid)
	n.want("ok", "stop")
	n.want("ok", "waitexit")
	if _, err := os.Stat(pidFile); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the PID file is left after Stop: %v", err)
	}
}

// TestTableflipRolledBackAfterUpgrade: the new process dies when Upgrade has returned, and
// the old one waits for what is queued. That one serves on, and can be upgraded and stopped.
func TestTableflipRolledBackAfterUpgrade(t *testing.T) {
	for _, last := range []string{"stop", "upgrade"} {
		t.Run(last, func(t *testing.T) {
			f, p := startFlip(t, "")
			addr := p.do("listen queued tcp 127.0.0.1:0")
			p.do("addlistener added unix %s", f.path("added"))
			p.want("ok", "ready")
			queued, err := net.Dial("tcp", addr) // keeps the old process from its end for 5 seconds
			if err != nil {
				t.Fatal(err)
			}
			defer queued.Close()
			done := p.begin("upgrade")
			n := p.born()
			n.want("ok", "new")
			n.do("listener added unix %s", f.path("added"))
			n.want("ok", "ready")
			p.result(done, "ok")
			f.p.Signal(n.pid, syscall.SIGKILL)
			f.p.WaitLine(`grace: rolled back; this process accepts again`)
			p.want("false", "exiting")
			p.want("ok", "serve queued")
			if last == "upgrade" {
				p = p.next("", func(n *flipper) {
					n.do("listener queued tcp %s", addr)
					n.do("listener added unix %s", f.path("added"))
				})
			}
			p.want("ok", "stop")
			p.want("ok", "waitexit")
			if f.exists(f.path("added")) {
				t.Error("the path is there when the last process has stopped")
			}
			p.die(0)
		})
	}
}
