//go:build linux

package proctest

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Limit is how long a test waits for something that should happen soon. It is
// long, because it only ends tests that fail; PROCTEST_LIMIT=5s shortens it for
// a test that breaks things on purpose.
var Limit = limitFromEnv()

func limitFromEnv() time.Duration {
	if d, err := time.ParseDuration(os.Getenv("PROCTEST_LIMIT")); err == nil {
		return d
	}
	return 30 * time.Second
}

// A Command is a program to be started.
type Command struct {
	Path string
	Args []string // without the program's name
	Env  []string // in addition to the environment of the test
	Dir  string   // default: the test's
	// Credential is the user to run as. Default: the test's.
	Credential *syscall.Credential
	// Argv0 is the program's name. Default: Path.
	Argv0 string
}

// A Process is a started program with all its generations.
type Process struct {
	t     testing.TB
	pid   int
	stdin *os.File // the programs see its end when the test process is gone
	out   *os.File
	read  chan struct{} // closed when out was read to its end

	mu      sync.Mutex
	changed chan struct{} // closed at each new line and at each end
	lines   []string
	partial string // the beginning of the next one
	used    []bool // consumed by WaitLine
	exits   map[int]syscall.WaitStatus
	killed  bool
}

// Start starts c. What all generations write to stdout and stderr is kept as
// lines. Their standard input is a pipe that ends with the test process.
//
// When the test ends, at most one process may be left (a drain is waited for);
// it is told to stop by SIGTERM, must do so in time, and nothing may be left
// then. What is left is killed, and the test fails.
func Start(t testing.TB, c Command) *Process {
	t.Helper()
	outR, outW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer outW.Close()
	inR, inW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer inR.Close()
	p := &Process{
		t: t, stdin: inW, out: outR, read: make(chan struct{}),
		changed: make(chan struct{}), exits: map[int]syscall.WaitStatus{},
	}
	argv0 := c.Argv0
	if argv0 == "" {
		argv0 = c.Path
	}
	proc, err := os.StartProcess(c.Path, append([]string{argv0}, c.Args...), &os.ProcAttr{
		Dir: c.Dir, Env: append(environ(), c.Env...), Files: []*os.File{inR, outW, outW},
		Sys: &syscall.SysProcAttr{Setpgid: true, Credential: c.Credential},
	})
	if err != nil {
		outR.Close()
		inW.Close()
		t.Fatalf("start %s: %v", c.Path, err)
	}
	p.pid = proc.Pid
	proc.Release() // reap waits for it
	groupsMu.Lock()
	groups[p.pid] = p
	groupsMu.Unlock()
	reap() // it may have ended before it was known
	go p.readLines()
	t.Cleanup(p.cleanup)
	return p
}

// environ is the environment of the test. A program with the race detector
// sleeps a second before it exits, unless told not to.
func environ() []string {
	if _, ok := os.LookupEnv("GORACE"); ok {
		return os.Environ()
	}
	return append(os.Environ(), "GORACE=atexit_sleep_ms=0")
}

func (p *Process) readLines() {
	defer close(p.read)
	defer p.out.Close()
	raw, err := p.out.SyscallConn()
	if err == nil {
		err = raw.Read(p.readAll)
	}
	if err != nil {
		p.t.Errorf("the output can't be read: %v", err)
	}
}

// readNow reads what has been written so far: a program's line is known here
// once its answer over another way is.
func (p *Process) readNow() {
	if raw, err := p.out.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) { p.readAll(fd) }) // an error: it was read to its end
	}
}

// readAll reads all that is there, and reports whether it was the end.
func (p *Process) readAll(fd uintptr) (end bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	defer p.wake()
	buf := make([]byte, 64<<10)
	for {
		n, err := syscall.Read(int(fd), buf)
		switch {
		case err == syscall.EINTR:
		case err == syscall.EAGAIN:
			return false
		case n <= 0:
			if p.partial != "" {
				p.addLine(p.partial)
				p.partial = ""
			}
			return true
		default:
			lines := strings.Split(p.partial+string(buf[:n]), "\n")
			p.partial = lines[len(lines)-1]
			for _, line := range lines[:len(lines)-1] {
				p.addLine(line)
			}
		}
	}
}

func (p *Process) addLine(line string) {
	p.lines = append(p.lines, line)
	p.used = append(p.used, false)
}

// wake tells the goroutines that wait that something has changed. p.mu is held.
func (p *Process) wake() {
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *Process) ended(pid int, ws syscall.WaitStatus) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.exits[pid] = ws
	p.wake()
}

// Pid is the pid of the first generation, and the group of all.
func (p *Process) Pid() int { return p.pid }

// Lines gives what was written so far.
func (p *Process) Lines() []string {
	p.readNow()
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.lines...)
}

// Count says how many lines match the pattern so far.
func (p *Process) Count(pattern string) int {
	re := regexp.MustCompile(pattern)
	n := 0
	for _, l := range p.Lines() {
		if re.MatchString(l) {
			n++
		}
	}
	return n
}

// WaitLine waits for a line that matches the pattern and that no WaitLine has
// given yet, and gives the match and its submatches.
func (p *Process) WaitLine(pattern string) []string {
	p.t.Helper()
	re := regexp.MustCompile(pattern)
	limit := time.NewTimer(Limit)
	defer limit.Stop()
	next := 0
	for {
		p.mu.Lock()
		for ; next < len(p.lines); next++ {
			if p.used[next] {
				continue
			}
			if m := re.FindStringSubmatch(p.lines[next]); m != nil {
				p.used[next] = true
				p.mu.Unlock()
				return m
			}
		}
		changed := p.changed
		p.mu.Unlock()
		select {
		case <-changed:
		case <-limit.C:
			p.t.Fatalf("no line matches %q after %v", pattern, Limit)
		}
	}
}

// Adopt adds a process group that a program of this one has made, as
// supervisors do. Its processes count as this one's from then on.
func (p *Process) Adopt(group int) {
	groupsMu.Lock()
	groups[group] = p
	groupsMu.Unlock()
	reap()
}

// owns reports whether the process group is one of this Process.
func (p *Process) owns(group int) bool {
	groupsMu.Lock()
	defer groupsMu.Unlock()
	return groups[group] == p
}

// allGroups are those of this Process.
func (p *Process) allGroups() (all []int) {
	groupsMu.Lock()
	defer groupsMu.Unlock()
	for g, owner := range groups {
		if owner == p {
			all = append(all, g)
		}
	}
	return all
}

// All gives every process of the group: all generations, and what they have
// started, dead ones that were not reaped too.
func (p *Process) All() []Stat {
	own := p.allGroups()
	return stats(func(s Stat) bool { return slices.Contains(own, s.Group) })
}

// Living gives the pids of those that have not ended.
func (p *Process) Living() []int {
	var pids []int
	for _, s := range p.All() {
		if !s.Dead() {
			pids = append(pids, s.Pid)
		}
	}
	return pids
}

// Has reports whether pid is a living process of the group.
func (p *Process) Has(pid int) bool {
	s, ok := ReadStat(pid)
	return ok && p.owns(s.Group) && !s.Dead()
}

// Signal sends a signal to a process of the group.
func (p *Process) Signal(pid int, sig syscall.Signal) {
	p.t.Helper()
	if s, ok := ReadStat(pid); !ok || !p.owns(s.Group) {
		p.t.Fatalf("signal %v: process %d is not one of ours", sig, pid)
	}
	if err := syscall.Kill(pid, sig); err != nil {
		p.t.Fatalf("signal %v to process %d: %v", sig, pid, err)
	}
}

// Halt stops a process by SIGSTOP, and waits until each of its threads stands still: kill(2)
// may return while some of them still run.
func (p *Process) Halt(pid int) {
	p.t.Helper()
	p.Signal(pid, syscall.SIGSTOP)
	WaitFor(p.t, Limit, fmt.Sprintf("all threads of process %d to stop", pid), func() bool {
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		for _, task := range tasks {
			b, err := os.ReadFile(task)
			if err != nil || !strings.Contains(string(b), ") T ") { // proc_pid_stat(5)
				return false
			}
		}
		return len(tasks) > 0
	})
}

// WaitExit waits until a process of the group that is the test process's child
// (the first, or one whose parent has ended) was reaped, and says how it ended.
func (p *Process) WaitExit(pid int) syscall.WaitStatus {
	p.t.Helper()
	var ws syscall.WaitStatus
	p.waitFor("the end of process", func() (ok bool) { ws, ok = p.exits[pid]; return ok })
	return ws
}

// WaitGone waits until a process of the group exists no more, not even unreaped.
func (p *Process) WaitGone(pid int) {
	p.t.Helper()
	WaitFor(p.t, Limit, "the end of a process", func() bool {
		s, ok := ReadStat(pid)
		return !ok || !p.owns(s.Group)
	})
}

// WaitAllGone waits until no process of the group is left.
func (p *Process) WaitAllGone() {
	p.t.Helper()
	WaitFor(p.t, Limit, "the end of all processes", func() bool { return len(p.All()) == 0 })
}

// WaitAlone waits until one process of the group is left, and gives its pid.
func (p *Process) WaitAlone() int {
	p.t.Helper()
	var all []Stat
	WaitFor(p.t, Limit, "a single process", func() bool { all = p.All(); return len(all) == 1 && !all[0].Dead() })
	return all[0].Pid
}

// waitFor waits for a condition that changes with p.changed. p.mu is held in it.
func (p *Process) waitFor(what string, cond func() bool) {
	p.t.Helper()
	limit := time.NewTimer(Limit)
	defer limit.Stop()
	for {
		p.mu.Lock()
		ok, changed := cond(), p.changed
		p.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-limit.C:
			p.t.Fatalf("waited %v in vain for %s", Limit, what)
		}
	}
}

// Kill ends all processes of the group at once; the cleanup then finds none.
func (p *Process) Kill() {
	p.t.Helper()
	p.mu.Lock()
	p.killed = true
	p.mu.Unlock()
	for len(p.All()) > 0 {
		for _, g := range p.allGroups() {
			syscall.Kill(-g, syscall.SIGKILL)
		}
		if !Poll(Limit, func() bool { reap(); return len(p.All()) == 0 }) {
			p.t.Errorf("processes are left after SIGKILL: %v", p.All())
			return
		}
	}
}

func (p *Process) cleanup() {
	p.mu.Lock()
	killed := p.killed
	p.mu.Unlock()
	if !killed {
		if !Poll(Limit, func() bool { return len(p.All()) <= 1 }) {
			p.t.Errorf("more than one process is left: %+v", p.All())
		}
		for _, pid := range p.Living() {
			syscall.Kill(pid, syscall.SIGTERM)
		}
		if !Poll(Limit, func() bool { return len(p.All()) == 0 }) {
			p.t.Errorf("processes are left after SIGTERM: %+v", p.All())
		}
	}
	p.Kill()
	p.stdin.Close()
	select {
	case <-p.read:
	case <-time.After(Limit):
		p.t.Errorf("a process outside of the group holds the output open")
	}
	for _, g := range p.allGroups() {
		groupsMu.Lock()
		delete(groups, g)
		groupsMu.Unlock()
	}
	if p.t.Failed() {
		p.t.Logf("output of all generations:\n%s", strings.Join(p.Lines(), "\n"))
	}
	for _, l := range p.Lines() {
		if strings.Contains(l, "WARNING: DATA RACE") {
			p.t.Errorf("the race detector found a race in the program")
		}
	}
}

// WaitFor waits until cond says true, and fails the test if it does not in time.
func WaitFor(t testing.TB, limit time.Duration, what string, cond func() bool) {
	t.Helper()
	if !Poll(limit, cond) {
		t.Fatalf("waited %v in vain for %s", limit, what)
	}
}

// Poll asks cond again and again until it says true; false if it does not in time.
func Poll(limit time.Duration, cond func() bool) bool {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	end := time.NewTimer(limit)
	defer end.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-end.C:
			return cond()
		}
	}
	return true
}
