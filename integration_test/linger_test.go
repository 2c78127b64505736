//go:build linux

package integration_test

import (
	"fmt"
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
	"github.com/julofinance/grace/v3/internal/testing/lingertest"
	"golang.org/x/sys/unix"
)

// TestLingerStreams: streams of each kind, of every generation, over five upgrades. None is
// cut, no upgrade waits for another, each is over soon, and the PID file names the newest.
// With -linger-long each is held for a minute: make linger.
func TestLingerStreams(t *testing.T) {
	s := startServer(t, "-linger", "5", "-drain", "1s") // which is not what limits the streams
	backend := startBackend(t)
	l := s.startLoad(2)
	var all []*stream
	run := lingertest.New(t, func() { mustLiveAll(all) })
	open := func() {
		all = append(all, s.streams(backend)...)
		run.Opened(fmt.Sprintf("SSE, WebSocket and tunnel of process %d", s.filePid()))
	}
	open()
	pids := []int{s.Pid()}
	for range lingertest.Upgrades {
		run.Upgrade()
		old := s.filePid()
		pid := s.upgradeAndLinger()
		// By the times of the processes' own log lines.
		run.Over(s.took(fmt.Sprintf(`msg="grace: upgrade done; draining" from=%d `, old), fmt.Sprintf(`msg="grace: the old process lingers; this one may be upgraded" from=%d `, pid)))
		mustLiveAll(all)
		open()
		pids = append(pids, pid)
	}
	run.End()
	if n := s.Count(`msg="grace: upgrade queued"`); n > 0 {
		t.Errorf("%d upgrades have waited", n)
	}
	for i, pid := range pids {
		if !s.Has(pid) {
			t.Errorf("generation %d, process %d, is gone", i+1, pid)
		}
		for _, st := range all[3*i : 3*i+3] {
			if st.pid != pid {
				t.Errorf("%s was opened at process %d, want %d", st.name, st.pid, pid)
			}
		}
	}
	l.mustLoseNothing(t)
	// Each process ends with its last stream, in whatever order.
	for _, i := range []int{2, 0, 4, 1, 3} {
		for _, st := range all[3*i : 3*i+3] {
			st.mustLive()
			st.conn.Close()
		}
		s.WaitGone(pids[i])
		s.WaitLine(fmt.Sprintf(`msg="grace: an old process that lingered is gone" from=%d .*old=%d `, pids[5], pids[i]))
	}
	if got := s.WaitAlone(); got != pids[5] || s.filePid() != got {
		t.Errorf("process %d is left, the PID file names %d; want %d", got, s.filePid(), pids[5])
	}
	if n := s.Count(`cut=[1-9]`); n > 0 {
		t.Errorf("%d processes have cut something off", n)
	}
	mustLiveAll(all[15:])
}

// TestLingerStop: TERM to the service ends those that linger as well, each within its
// DrainTimeout; what ends by itself in that time is not cut off. A second one cuts off.
func TestLingerStop(t *testing.T) {
	for _, now := range []bool{false, true} {
		t.Run(fmt.Sprint("now ", now), func(t *testing.T) {
			drain := "3s"
			if now {
				drain = "1h"
			}
			s := startServer(t, "-linger", "5", "-drain", drain)
			ends, stays := []*held{s.hold()}, s.streams(startBackend(t))
			pids := []int{s.Pid()}
			for range 2 {
				pids = append(pids, s.upgradeAndLinger())
				ends, stays = append(ends, s.hold()), append(stays, s.stream("/websocket"))
			}
			s.Signal(pids[2], syscall.SIGTERM)
			for _, pid := range pids[:2] {
				s.WaitLine(fmt.Sprintf(`msg="grace: the process that serves tells this one, which lingers, to end" from=%d `, pid))
			}
			mustLiveAll(stays)
			for _, h := range ends {
				h.release()
			}
			if now {
				s.Signal(pids[2], syscall.SIGINT) // another one, which does not count as the same
			}
			for _, st := range stays {
				st.cutOff()
			}
			s.WaitAllGone()
			if _, err := os.Stat(s.pidFile); !os.IsNotExist(err) {
				t.Errorf("the PID file is there still: %v", err)
			}
		})
	}
}

// TestLingerStopOne: TERM to a process that lingers ends that one alone, also soon after
// the hand-over; USR2 to it reaches the one that serves.
func TestLingerStopOne(t *testing.T) {
	s := startServer(t, "-linger", "5", "-drain", "1s")
	all := []*stream{s.stream("/websocket")}
	pids := []int{s.Pid()}
	for range 2 {
		pids = append(pids, s.upgradeAndLinger())
		all = append(all, s.stream("/websocket"))
	}
	s.Signal(pids[1], syscall.SIGTERM)
	s.WaitLine(fmt.Sprintf(`msg="grace: stop asked of a process that lingers; it ends" from=%d `, pids[1]))
	all[1].cutOff()
	s.WaitGone(pids[1])
	s.Signal(pids[0], syscall.SIGUSR2)
	s.WaitLine(fmt.Sprintf(`msg="grace: upgrade asked of a process that lingers; passed on to the one that serves" from=%d`, pids[0]))
	s.WaitLine(fmt.Sprintf(`msg="grace: the old process lingers; this one may be upgraded" .*old=%d`, pids[2]))
	all[0].mustLive()
	all[2].mustLive()
	if n := s.Count(`msg="grace: stopping"`); n > 0 {
		t.Errorf("%d processes have taken it for a stop of the service", n)
	}
}

// TestLingerMost: one process may linger. At the second upgrade the first is given its
// DrainTimeout, the third waits until it is gone, and no more than two linger ever.
func TestLingerMost(t *testing.T) {
	s := startServer(t, "-linger", "1", "-drain", "4s")
	first := s.stream("/websocket")
	s.upgradeAndLinger()
	second := s.stream("/websocket")
	pid := s.upgradeAndLinger()
	s.WaitLine(fmt.Sprintf(`msg="grace: more processes linger than may; the oldest is told to end" from=%d .*old=%d `, pid, first.pid))
	first.mustLive()
	s.Signal(pid, syscall.SIGUSR2)
	s.WaitLine(fmt.Sprintf(`msg="grace: upgrade queued" from=%d until="an older process that lingers, pid %d, is gone"`, pid, first.pid))
	first.cutOff()
	s.WaitLine(fmt.Sprintf(`msg="grace: upgrade begins" from=%d`, pid))
	s.WaitLine(fmt.Sprintf(`msg="grace: the old process (lingers; this one may be upgraded|is gone)" .*old=%d`, pid))
	if s.Has(first.pid) {
		t.Errorf("process %d is there still", first.pid)
	}
	second.mustLive()
}

// TestLingerCrash: a new process that dies on probation is rolled back by its parent, and a
// grandparent that lingers takes no part. One that dies when it serves alone is a crash, as
// without one that lingers: no process takes over, and the service can be started again at
// once. Those that linger end soon, since nothing can tell them to any more.
func TestLingerCrash(t *testing.T) {
	s := startServer(t, "-linger", "5", "-drain", "5s")
	first := s.stream("/websocket")
	pid := s.upgradeAndLinger()
	second := s.stream("/websocket")
	s.misbehave("kill-after-ready=100ms")
	s.Signal(pid, syscall.SIGUSR2)
	s.WaitLine(fmt.Sprintf(`msg="grace: rolled back; this process accepts again" from=%d`, pid))
	if got := s.servingPid(); got != pid || s.filePid() != pid {
		t.Errorf("after the roll back process %d answers, the PID file names %d; want %d", got, s.filePid(), pid)
	}
	first.mustLive()
	last := s.upgradeAndLinger()
	first.mustLive()
	second.mustLive()
	s.Signal(last, syscall.SIGKILL)
	s.WaitLine(fmt.Sprintf(`msg="grace: the new process died when this one had handed over for good, and lingers; no process serves" from=%d new=%d `, pid, last))
	if c, err := s.get("/pid"); err == nil {
		t.Errorf("process %s serves", c)
	}
	again := proctest.Start(t, proctest.Command{Path: proctest.Build(t, serverPackage), Args: []string{"-http", "tcp=" + s.addr, "-pidfile", s.pidFile}})
	again.WaitLine(`msg="grace: serving"`)
	if got := s.servingPid(); got != again.Pid() || s.filePid() != got {
		t.Errorf("process %d answers, the PID file names %d; want %d", got, s.filePid(), again.Pid())
	}
	first.mustLive()
	second.mustLive()
	for _, old := range []int{first.pid, second.pid} {
		s.WaitLine(fmt.Sprintf(`msg="grace: no process of the service is left but those that linger; this one ends" from=%d `, old))
	}
	first.cutOff()
	second.cutOff()
	s.WaitAllGone()
}

// TestLingerCrashInTheMiddle: the second of three generations dies. The first one, whose child
// it was, does not say that no process serves, and both others go on.
func TestLingerCrashInTheMiddle(t *testing.T) {
	s := startServer(t, "-linger", "5")
	first := s.stream("/websocket")
	middle := s.upgradeAndLinger()
	second := s.stream("/websocket")
	last := s.upgradeAndLinger()
	s.Signal(middle, syscall.SIGKILL)
	second.cutOff()
	s.WaitGone(middle) // the first one knows
	if got := s.servingPid(); got != last {
		t.Errorf("process %d answers, want %d", got, last)
	}
	first.mustLive()
	first.conn.Close()
	s.WaitGone(first.pid)
	if n := s.Count(`no process (serves|of the service is left)|could not say whether`); n > 0 {
		t.Errorf("%d lines say that no process serves, or that it is not known", n)
	}
	s.Signal(last, syscall.SIGTERM)
	s.WaitAllGone()
}

// TestLingerSupervised: supervisord takes the first process for the service. TERM to it ends
// the service, also when that process lingers, and its child is gone.
func TestLingerSupervised(t *testing.T) {
	s := startServerAs(t, proctest.Command{Path: proctest.Build(t, serverPackage), Args: []string{"-linger", "5", "-drain", "1s"}, Env: []string{"SUPERVISOR_ENABLED=1"}})
	first := s.stream("/websocket")
	second := s.upgradeAndLinger()
	last := s.upgradeAndLinger()
	s.WaitGone(second)
	s.Signal(first.pid, syscall.SIGTERM)
	s.WaitLine(fmt.Sprintf(`msg="grace: stopping" from=%d reason="process %d, which a supervisor takes for the service, was told to stop"`, last, first.pid))
	first.cutOff()
	s.WaitAllGone()
}

// TestLingerNotify: systemd is told of the new main process when the old one begins to
// linger, and of no other one when that ends: TERM to one that lingers is not for the
// service then.
func TestLingerNotify(t *testing.T) {
	path := filepath.Join(shortDir(t), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	mains := make(chan int, 100)
	go func() {
		b, oob := make([]byte, 4096), make([]byte, 4096)
		for {
			n, oobn, _, _, err := conn.ReadMsgUnix(b, oob)
			if err != nil {
				return
			}
			if m := regexp.MustCompile(`(?m)^MAINPID=(\d+)$`).FindSubmatch(b[:n]); m != nil {
				pid, _ := strconv.Atoi(string(m[1]))
				mains <- pid
			}
			msgs, _ := unix.ParseSocketControlMessage(oob[:oobn])
			for i := range msgs { // of BARRIER=1
				fds, _ := unix.ParseUnixRights(&msgs[i])
				for _, fd := range fds {
					unix.Close(fd)
				}
			}
		}
	}()
	s := startServerAs(t, proctest.Command{Path: proctest.Build(t, serverPackage), Args: []string{"-linger", "5", "-drain", "1s"}, Env: []string{"NOTIFY_SOCKET=" + path}})
	var all []*stream
	for range 3 {
		all = append(all, s.stream("/websocket"))
		pid := s.upgradeAndLinger()
		select {
		case got := <-mains:
			if got != pid {
				t.Fatalf("systemd was told MAINPID=%d, want %d", got, pid)
			}
		case <-time.After(proctest.Limit):
			t.Fatalf("systemd was not told MAINPID=%d", pid)
		}
	}
	serving := s.filePid()
	all[0].conn.Close()
	s.WaitLine(fmt.Sprintf(`msg="grace: stopped" from=%d `, all[0].pid))
	s.WaitGone(all[0].pid)
	s.Signal(all[1].pid, syscall.SIGTERM)
	all[1].cutOff()
	s.WaitGone(all[1].pid)
	all[2].mustLive()
	if got := s.servingPid(); got != serving {
		t.Errorf("process %d answers, want %d", got, serving)
	}
	s.Signal(serving, syscall.SIGTERM)
	all[2].cutOff()
	s.WaitAllGone()
	if n := len(mains); n > 0 {
		t.Errorf("systemd was told %d main processes more, the first of which is %d", n, <-mains)
	}
	// The main process is the last, or systemd would kill the other one.
	lines, at := s.Lines(), map[int]int{}
	for i, line := range lines {
		for _, pid := range []int{all[2].pid, serving} {
			if strings.Contains(line, fmt.Sprintf(`msg="grace: stopped" from=%d `, pid)) {
				at[pid] = i
			}
		}
	}
	if at[serving] < at[all[2].pid] {
		t.Errorf("the main process, %d, has ended before %d, which lingered", serving, all[2].pid)
	}
}

// TestLingerMemory: a process that lingers gives its memory back.
func TestLingerMemory(t *testing.T) {
	const mib = 200
	// The race detector has memory of its own, which it does not give back.
	s := startServerAs(t, proctest.Command{Path: proctest.Build(t, serverPackage, "-race=false"), Args: []string{"-linger", "5"}})
	st := s.stream("/websocket")
	s.mustGet(fmt.Sprintf("/garbage?mib=%d", mib))
	before := resident(t, st.pid)
	if before < mib<<10 {
		t.Fatalf("process %d has %d kB, want more than %d MiB", st.pid, before, mib)
	}
	s.upgradeAndLinger()
	proctest.WaitFor(t, proctest.Limit, "the memory to be given back", func() bool { return resident(t, st.pid) < before-mib<<10*9/10 })
	t.Logf("%d kB before, %d kB while it lingers", before, resident(t, st.pid))
	st.mustLive()
}

// resident gives what a process has in memory, in kB.
func resident(t testing.TB, pid int) (kb int) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "VmRSS:")
	fmt.Sscan(rest, &kb)
	return kb
}
