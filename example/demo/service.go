//go:build unix

package main

import (
	"crypto/tls"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// limit is how long the demo waits for something that should happen soon.
const limit = 30 * time.Second

// A service is the server, in whatever generation.
type service struct {
	cfg     config
	dir     string // of the PID file
	addr    string // where it listens
	tlsAddr string
	trust   *tls.Config // of its clients that speak TLS
	journal *journal
	stdin   *os.File // its end ends every generation

	mu     sync.Mutex
	groups []int // process groups; each first process has one
	reaped sync.WaitGroup
}

func startService(cfg config) (*service, error) {
	dir, err := os.MkdirTemp("", "grace-demo-")
	if err != nil {
		return nil, err
	}
	s := &service{cfg: cfg, dir: dir, addr: cfg.addr, tlsAddr: "127.0.0.1:0"}
	s.trust, err = writeCertificate(s.path("cert"))
	if err == nil {
		err = s.start()
	}
	if err != nil {
		s.end()
		return nil, err
	}
	return s, nil
}

// start starts a first process and waits until it serves.
func (s *service) start() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	in, stdin, err := os.Pipe()
	if err != nil {
		return err
	}
	defer in.Close()
	out, theirs, err := os.Pipe()
	if err != nil {
		stdin.Close()
		return err
	}
	defer theirs.Close()
	args := []string{
		self, "server", "-addr", s.addr, "-tls", s.tlsAddr, "-cert", s.path("cert"), "-pidfile", s.path("pid"), "-sabotage", s.path("sabotage"),
		"-probation", s.cfg.probation.String(), "-drain", s.cfg.drain.String(),
		fmt.Sprintf("-movetls=%t", s.cfg.moveTLS),
	}
	// A process group of its own: Ctrl-C is for the demo, which ends the load first.
	p, err := os.StartProcess(self, args, &os.ProcAttr{
		Files: []*os.File{in, theirs, theirs}, Sys: &syscall.SysProcAttr{Setpgid: true},
	})
	if err != nil {
		stdin.Close()
		out.Close()
		return err
	}
	pid := p.Pid
	p.Release() // reap waits for it
	s.mu.Lock()
	s.groups = append(s.groups, pid)
	s.mu.Unlock()
	s.reaped.Go(func() { reap(pid) })
	s.stdin, s.journal = stdin, newJournal(s.cfg.verbose)
	go s.journal.read(out)
	return s.journal.each(limit, func(e entry) bool {
		if e.Msg == "demo: listening" {
			s.addr, s.tlsAddr = e.Addr, e.TLS
		}
		return strings.HasPrefix(e.Msg, "grace: serving")
	})
}

// reap waits for all processes of a group, orphans too.
func reap(group int) {
	for {
		var ws syscall.WaitStatus
		if _, err := syscall.Wait4(-group, &ws, 0, nil); err != nil && err != syscall.EINTR {
			return // no child is left
		}
	}
}

func (s *service) path(name string) string { return filepath.Join(s.dir, name) }

// pid is what an operator's $(cat app.pid) gives.
func (s *service) pid() (int, error) {
	b, err := os.ReadFile(s.path("pid"))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(b)))
}

// sabotage breaks the next version.
func (s *service) sabotage(how string) error {
	return os.WriteFile(s.path("sabotage"), []byte(how), 0o644)
}

// An upgrade is what one replacement of the server was like.
type upgrade struct {
	old, new        int
	handOver        time.Duration // from the signal until the new process accepts
	failed          string        // why it was rolled back; empty if it was not
	drained         time.Duration
	moved, finished int  // connections
	waited, cut     int  // streams, and what was cut off
	broken          bool // on purpose
	answered, lost  int  // by the load, since the last upgrade
}

// replace replaces the server in the way that the flags say.
func (s *service) replace() (upgrade, error) {
	if s.cfg.how == "usr2" {
		return s.upgrade()
	}
	return s.restart()
}

// upgrade does kill -USR2 $(cat pid), and watches.
func (s *service) upgrade() (up upgrade, err error) {
	if up.old, err = s.pid(); err != nil {
		return up, err
	}
	begun := time.Now()
	if err := syscall.Kill(up.old, syscall.SIGUSR2); err != nil {
		return up, fmt.Errorf("kill -USR2 %d: %w", up.old, err)
	}
	err = s.journal.each(s.cfg.probation+s.cfg.drain+limit, func(e entry) bool {
		is := func(prefix string) bool { return strings.HasPrefix(e.Msg, prefix) }
		switch {
		case is("grace: serving"):
			up.new, up.handOver = e.From, e.Time.Sub(begun)
		case is("grace: drained"):
			up.drained, up.moved, up.finished, up.waited, up.cut = e.Took, e.Moved, e.Finished, e.Waited, e.Cut
		case is("grace: upgrade failed"), is("grace: rolled back"):
			up.failed = e.Err
			up.handOver = e.Time.Sub(begun)
			return true
		case is("grace: the old process is gone"):
			return true
		}
		return false
	})
	return up, err
}

// restart ends the server and starts it again, as is done without an upgrade.
func (s *service) restart() (up upgrade, err error) {
	if up.old, err = s.pid(); err != nil {
		return up, err
	}
	begun := time.Now()
	sig := syscall.SIGTERM
	if s.cfg.how == "kill" {
		sig = syscall.SIGKILL
	}
	if err := syscall.Kill(up.old, sig); err != nil {
		return up, err
	}
	if !s.journal.waitEnd(s.cfg.drain + limit) {
		return up, fmt.Errorf("process %d did not end", up.old)
	}
	s.stdin.Close()
	if err := s.start(); err != nil {
		return up, err
	}
	up.handOver = time.Since(begun)
	up.new, err = s.pid()
	return up, err
}

// end stops the server, and leaves no process and no file behind.
func (s *service) end() error {
	defer os.RemoveAll(s.dir)
	if s.journal == nil {
		return nil
	}
	defer s.stdin.Close()
	if pid, err := s.pid(); err == nil {
		syscall.Kill(pid, syscall.SIGTERM)
	}
	var err error
	if !s.journal.waitEnd(limit) {
		err = fmt.Errorf("the server did not stop in %v and was killed; the last words: %s", limit, s.journal.lastWords())
		s.mu.Lock()
		for _, group := range s.groups {
			syscall.Kill(-group, syscall.SIGKILL)
		}
		s.mu.Unlock()
		s.journal.waitEnd(limit)
	}
	s.reaped.Wait()
	return err
}
