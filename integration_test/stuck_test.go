//go:build linux

package integration_test

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/proctest"
	"github.com/julofinance/grace/v3/internal/testing/fdtest"
	"golang.org/x/sys/unix"
)

// What is outside hangs, and the processes do what they are told all the same.

// startStuck starts the test server with a standard error that is a pipe, which no
// process reads once the server serves, with room for so many lines more.
func startStuck(t *testing.T, room int, args ...string) *server {
	t.Helper()
	dir := t.TempDir()
	s := &server{t: t, pidFile: filepath.Join(dir, "app.pid"), misFile: filepath.Join(dir, "misbehave")}
	fifo := filepath.Join(dir, "log")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := os.OpenFile(fifo, os.O_RDWR|unix.O_NONBLOCK, 0) // the test has both ends: it never breaks
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { log.Close() })
	s.Process = proctest.Start(t, proctest.Command{
		Path: script(t, `exec %s "$@" 2>%s`, proctest.Build(t, serverPackage), fifo),
		Args: append([]string{"-http", "tcp=127.0.0.1:0", "-pidfile", s.pidFile, "-misbehave", s.misFile}, args...),
	})
	s.addr = s.WaitLine(`^listening http tcp (\S+)`)[1]
	s.transport = &http.Transport{DisableKeepAlives: true}
	s.client = &http.Client{Transport: s.transport, Timeout: 2 * proctest.Limit}
	s.servingPid()
	log.SetReadDeadline(time.Now().Add(proctest.Limit))
	for text, b := "", make([]byte, 4096); !strings.Contains(text, "grace: serving"); {
		n, err := log.Read(b)
		if err != nil {
			t.Fatalf("the log has %q, and then: %v", text, err)
		}
		text += string(b[:n])
	}
	fill(t, log, room)
	return s
}

// lineSize is that of a line of the log, or a little more.
const lineSize = 220

// fill fills a pipe but for so many lines.
func fill(t *testing.T, pipe *os.File, room int) {
	t.Helper()
	raw, err := pipe.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) {
		size, err := unix.FcntlInt(fd, unix.F_SETPIPE_SZ, 4096)
		if err != nil {
			t.Fatal(err)
		}
		for left := size - room*lineSize; left > 0; {
			n, err := unix.Write(int(fd), make([]byte, left))
			if err != nil {
				t.Fatal(err)
			}
			left -= n
		}
		if _, err := unix.Write(int(fd), make([]byte, room*lineSize+1)); !errors.Is(err, unix.EAGAIN) {
			t.Fatalf("the pipe is not full: error %v", err)
		}
	})
}

// TestLogThatIsNotRead: standard error is a full pipe, or has room for a few
// lines, at which another step of the hand-over would be the one that waits.
func TestLogThatIsNotRead(t *testing.T) {
	for room := range 4 {
		t.Run(fmt.Sprintf("room for %d lines", room), func(t *testing.T) {
			t.Parallel()
			t.Run("USR2", func(t *testing.T) {
				s := startStuck(t, room, "-probation", "0")
				l := s.startLoad(2)
				old := s.Pid()
				s.Signal(old, syscall.SIGUSR2)
				s.WaitGone(old)
				pid := s.WaitAlone()
				l.mustLoseNothing(t)
				if got := s.servingPid(); got != pid || s.filePid() != pid {
					t.Errorf("process %d is left, %d answers, the PID file names %d", pid, got, s.filePid())
				}
			})
			t.Run("death in probation", func(t *testing.T) {
				s := startStuck(t, room, "-probation", "1m")
				old := s.Pid()
				s.Signal(old, syscall.SIGUSR2)
				new := old
				proctest.WaitFor(t, proctest.Limit, "an answer of the new process", func() bool { new = s.servingPid(); return new != old })
				if s.successor(old) != new {
					t.Fatal("a third process answers")
				}
				s.Signal(new, syscall.SIGKILL)
				s.WaitGone(new)
				proctest.WaitFor(t, proctest.Limit, "the old pid in the PID file", func() bool { return s.filePid() == old })
				if got := s.servingPid(); got != old {
					t.Errorf("process %d answers, want %d", got, old)
				}
				s.Signal(old, syscall.SIGTERM)
				s.mustStopAll(old)
			})
			t.Run("TERM, and another stop", func(t *testing.T) {
				s := startStuck(t, room, "-drain", "10m")
				h := s.hold()
				s.Signal(s.Pid(), syscall.SIGTERM)
				s.waitRefused()
				s.Signal(s.Pid(), syscall.SIGINT)
				h.cutOff()
				s.mustStopAll(s.Pid())
			})
		})
	}
}

// TestUnitThatIsNotRead: systemd's socket is full, and no process reads it.
func TestUnitThatIsNotRead(t *testing.T) {
	path := filepath.Join(shortDir(t), "notify")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	fdtest.FillUnixgram(t, path)
	s := startServerAs(t, proctest.Command{Path: proctest.Build(t, serverPackage), Args: []string{"-probation", "0"}, Env: []string{"NOTIFY_SOCKET=" + path}})
	old := s.Pid()
	l := s.startLoad(1)
	s.Signal(old, syscall.SIGUSR2)
	s.WaitLine(`upgrade done; draining"`)
	s.WaitGone(old)
	l.mustLoseNothing(t)
	pid := s.WaitAlone()
	if got := s.servingPid(); got != pid || s.filePid() != pid {
		t.Errorf("process %d is left, %d answers, the PID file names %d", pid, got, s.filePid())
	}
	s.Signal(pid, syscall.SIGTERM)
	s.WaitAllGone()
}

// TestPIDFileThatHangs: the disk of the PID file takes minutes for a rename from the
// moment at which the new process dies. The old one accepts at once, and can be
// stopped.
func TestPIDFileThatHangs(t *testing.T) {
	strace := underStrace(t, nil, "").Path
	s := startServer(t, "-probation", "1m")
	old := s.Pid()
	s.Signal(old, syscall.SIGUSR2)
	s.WaitLine(`standing by"`)
	new := s.successor(old)
	trace := filepath.Join(t.TempDir(), "trace")
	tracer := exec.Command(strace, "-f", "-qq", "-e", "signal=none", "-e", "trace=/^rename", "-e", "inject=/^rename:delay_enter=300000000", "-o", trace, "-p", strconv.Itoa(old))
	if err := tracer.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { tracer.Process.Kill(); tracer.Wait() }()
	proctest.WaitFor(t, proctest.Limit, "strace to trace the process", func() bool {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", old))
		return err == nil && strings.Contains(string(b), fmt.Sprintf("TracerPid:\t%d\n", tracer.Process.Pid))
	})
	s.Signal(new, syscall.SIGKILL)
	if got := s.servingPid(); got != old {
		t.Errorf("process %d answers, want %d", got, old)
	}
	s.WaitLine(`rolled back; this process accepts again"`)
	proctest.WaitFor(t, proctest.Limit, "the rename to hang", func() bool {
		b, err := os.ReadFile(trace)
		return err == nil && strings.Contains(string(b), "rename")
	})
	s.Signal(old, syscall.SIGUSR2)
	s.WaitLine(`upgrade queued" from=\d+ until="what the last upgrade had taken is back in place"`)
	s.mustGet("/pid")
	s.Signal(old, syscall.SIGTERM)
	s.WaitLine(`msg="grace: stopped" from=` + strconv.Itoa(old))
	tracer.Process.Kill() // the kernel ends no process that is in the middle of a call to its disk
	s.WaitAllGone()
}

// TestProgramThatStays: the old program does not exit after Done. Both processes say
// which one it is, and after a time the new one can be upgraded all the same.
func TestProgramThatStays(t *testing.T) {
	stay := filepath.Join(t.TempDir(), "stay")
	s := startServer(t, "-probation", "0", "-drain", "1s", "-stay", stay)
	touch(t, stay)
	old := s.Pid()
	s.Signal(old, syscall.SIGUSR2)
	s.WaitLine(`upgrade done; draining"`)
	new := s.successor(old)
	s.WaitLine(fmt.Sprintf(`this process has finished, and does not exit" from=%d pid=%d new=%d hint=`, old, old, new))
	s.WaitLine(fmt.Sprintf(`the old process has finished, and does not exit; this one does not wait for it any more" from=%d old=%d`, new, old))
	s.Signal(new, syscall.SIGUSR2)
	s.WaitLine(fmt.Sprintf(`upgrade done; draining" from=%d`, new))
	remove(t, stay)
	s.WaitGone(old)
	s.WaitGone(new)
	pid := s.WaitAlone()
	if gen := s.mustGet("/gen"); gen != "3" || s.filePid() != pid {
		t.Errorf("generation %s is left, and the PID file names %d, want 3 and %d", gen, s.filePid(), pid)
	}
}
