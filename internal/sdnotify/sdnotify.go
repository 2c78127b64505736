// Package sdnotify tells systemd what happens to the service, by the protocol of
// sd_notify(3), in a way that survives that the main process is replaced.
//
// systemd listens to one process, the main one. The old process stays the main process
// until the moment in which it exits: until then it may have to take over again, and with
// the default NotifyAccess=main it could not tell systemd so if it had moved MAINPID=
// away before. So systemd hears of an upgrade from the old process only. The new process
// is silent until the old one has told it, over the control channel, that it is the main
// process now, or until the old one is dead.
//
//	old  RELOADING=1, MONOTONIC_USEC=   an upgrade begins
//	old  READY=1, STATUS=               the upgrade failed, or was rolled back
//	old  MAINPID=, READY=1, STATUS=     the old process has drained; the very next thing it does is
//	old  BARRIER=1                      to wait until systemd has read that
//	old  tells the new process, closes Done, exits
//
// If the old process is killed before that, systemd ends the service and starts it again,
// unless the unit has PIDFile=: then systemd looks into that file first, and goes on with
// the new process. A unit with ExecReload= must not have PIDFile=, since systemd reads the
// file also when ExecReload= ends, which is somewhere in the middle of an upgrade.
//
// github.com/coreos/go-systemd/v22 is not used: it has no BARRIER=1 and no way to build it,
// and its watchdog looks for a variable with the pid of the first generation.
package sdnotify

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// timeout limits each write, and the wait for systemd to have read it.
const timeout = 5 * time.Second

// A Manager is the service manager that started the first process: where notifications
// go, and what it wants of them. Each process gives it to the next one, since WATCHDOG_PID
// would name the process before, and the program may have changed its environment.
type Manager struct {
	Socket   string        // NOTIFY_SOCKET
	Watchdog time.Duration // WATCHDOG_USEC; 0 if systemd does not want to be told
	Parent   bool          // the service manager is the parent of the first process
}

// TakeManager reads the environment of a first process. It is nil if there is no
// NOTIFY_SOCKET. That variable stays in the environment, as other programs for systemd
// leave it: systemd knows from which process a message comes. TakeManager removes
// WATCHDOG_USEC and WATCHDOG_PID, which would be wrong from the next generation on.
func TakeManager() (m *Manager, err error) {
	usec, pid := os.Getenv("WATCHDOG_USEC"), os.Getenv("WATCHDOG_PID")
	os.Unsetenv("WATCHDOG_USEC")
	os.Unsetenv("WATCHDOG_PID")
	socket := os.Getenv("NOTIFY_SOCKET")
	if socket == "" {
		return nil, nil
	}
	if socket[0] != '/' && socket[0] != '@' {
		return nil, fmt.Errorf("NOTIFY_SOCKET=%q is neither a path nor an abstract socket", socket)
	}
	m = &Manager{Socket: socket, Parent: os.Getppid() == 1}
	if started, ok := os.LookupEnv("SYSTEMD_EXEC_PID"); ok { // since systemd 248; a user's manager has any pid
		m.Parent = started == strconv.Itoa(os.Getpid())
	}
	if usec == "" || (pid != "" && pid != strconv.Itoa(os.Getpid())) {
		return m, nil
	}
	n, err := strconv.ParseInt(usec, 10, 64)
	if err != nil || n <= 0 || n > int64(24*365*time.Hour/time.Microsecond) {
		return m, fmt.Errorf("WATCHDOG_USEC=%q is not a number of microseconds", usec)
	}
	m.Watchdog = time.Duration(n) * time.Microsecond
	return m, nil
}

// A Notifier sends notifications to systemd. A nil Notifier sends none. Its methods are
// called by the goroutine that owns the Upgrader's state, but for Flush and for what
// MoveMain returns; they never wait. One goroutine writes, so that a systemd that does
// not read holds nothing up.
type Notifier struct {
	manager Manager
	log     *slog.Logger
	jobs    chan func()

	main     bool        // systemd listens to this process
	moving   atomic.Bool // it was not told yet to listen to the next one
	stopping bool        // systemd was told so
	broken   bool        // owned by the writer: the last write has failed
}

// New returns a Notifier for m. It is nil if m is: there is no systemd that wants to
// hear anything. main says that this process is the main one.
func New(m *Manager, log *slog.Logger, main bool) *Notifier {
	if m == nil {
		return nil
	}
	n := &Notifier{manager: *m, log: log, main: main, jobs: make(chan func(), 64)}
	go func() {
		for job := range n.jobs {
			job()
		}
	}()
	return n
}

// Manager is what the next process needs to know. It is nil without systemd.
func (n *Notifier) Manager() *Manager {
	if n == nil {
		return nil
	}
	return &n.manager
}

// Watchdog is the time within which systemd wants to hear Alive; 0 if it does not.
func (n *Notifier) Watchdog() time.Duration {
	if n == nil {
		return 0
	}
	return n.manager.Watchdog
}

// IsMain reports whether systemd takes this process for the main one. It does until it has
// read which one is: a stop that it sends before that is one of the service.
func (n *Notifier) IsMain() bool { return n != nil && (n.main || n.moving.Load()) }

// BecomeMain makes this process the one that systemd listens to. It reports whether that
// is news.
func (n *Notifier) BecomeMain() bool {
	if n == nil || n.main {
		return false
	}
	n.main = true
	return true
}

// WantsChildren reports whether the next process should be a child of the service manager.
func (n *Notifier) WantsChildren() bool { return n != nil && n.main && n.manager.Parent }

// say sends lines to systemd, if it listens to this process.
func (n *Notifier) say(lines ...string) {
	if n == nil || !n.main {
		return
	}
	select {
	case n.jobs <- func() { n.write(strings.Join(lines, "\n"), nil) }:
	default: // systemd has not read for long; what counts will be sent again
	}
}

// Reloading says that an upgrade begins.
func (n *Notifier) Reloading(status string) {
	n.say("RELOADING=1", fmt.Sprintf("MONOTONIC_USEC=%d", monotonicUsec()), statusLine(status))
}

// Ready says that this process serves, or still serves.
func (n *Notifier) Ready(status string) { n.say("READY=1", statusLine(status)) }

// Status changes the text that systemctl status shows.
func (n *Notifier) Status(status string) { n.say(statusLine(status)) }

// Alive tells the watchdog that this process is well.
func (n *Notifier) Alive() { n.say("WATCHDOG=1") }

// Stopping says that the service ends.
func (n *Notifier) Stopping(status string) {
	if n != nil && !n.stopping {
		n.stopping = true
		n.say("STOPPING=1", statusLine(status))
	}
}

// MoveMain returns a function that makes pid the main process, and waits until systemd
// has read that. It returns nil if systemd does not listen to this process. From then on
// systemd hears nothing more of this process.
func (n *Notifier) MoveMain(pid int, status string) (tell func()) {
	if n == nil || !n.main {
		return nil
	}
	n.main = false
	n.moving.Store(true)
	return func() {
		n.do(func() { n.writeMain(pid, status) })
	}
}

// writeMain runs in the goroutine that writes.
func (n *Notifier) writeMain(pid int, status string) {
	err := n.write(strings.Join([]string{fmt.Sprintf("MAINPID=%d", pid), "READY=1", "WATCHDOG=1", statusLine(status)}, "\n"), nil)
	if err == nil {
		err = n.barrier()
		n.moving.Store(false)
	}
	if err != nil {
		n.log.Warn("grace: systemd was not told the new main process", "new", pid, "err", err, "hint", "see whether systemd starts the service again now; nothing else is wrong")
	}
}

// Flush waits until all notifications so far are written, within limits.
func (n *Notifier) Flush() {
	if n != nil {
		n.do(func() {})
	}
}

// Close ends the Notifier. The notifications so far are still written.
func (n *Notifier) Close() {
	if n != nil {
		n.main = false
		close(n.jobs)
	}
}

// do waits for job and what was queued before it, within limits.
func (n *Notifier) do(job func()) {
	done := make(chan struct{})
	limit := time.NewTimer(2 * timeout)
	defer limit.Stop()
	select {
	case n.jobs <- func() { job(); close(done) }:
	case <-limit.C:
		return
	}
	select {
	case <-done:
	case <-limit.C:
	}
}

// write sends one datagram, with a descriptor if file is not nil. Of several failures in
// a row, only the first is logged.
func (n *Notifier) write(text string, file *os.File) error {
	err := n.send(text, file)
	if err != nil && !n.broken {
		n.log.Warn("grace: systemd can't be told", "socket", n.manager.Socket, "err", err)
	}
	n.broken = err != nil
	return err
}

func (n *Notifier) send(text string, file *os.File) error {
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: n.manager.Socket, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetWriteDeadline(time.Now().Add(timeout))
	if file != nil {
		return writeWithFile(conn, text, file)
	}
	_, err = conn.Write([]byte(text))
	return err
}

// barrier waits until systemd has read all that was written before: it closes the
// descriptor that comes with this message when it reads the message.
func (n *Notifier) barrier() error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	err = n.write("BARRIER=1", w)
	w.Close()
	if err != nil {
		return err
	}
	r.SetReadDeadline(time.Now().Add(timeout))
	_, err = r.Read(make([]byte, 1))
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("no answer to BARRIER=1 within %v", timeout)
	}
	return nil
}

// statusLine makes the text that systemctl status shows one line.
func statusLine(text string) string {
	return "STATUS=" + strings.Join(strings.Fields(text), " ")
}
