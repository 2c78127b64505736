package grace

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

// systemd's notify protocol, see sd_notify(3).
//
// systemd listens to one process, the main one, and its books say who that is.
// Old stays the main process until the moment in which it exits: until then it
// may have to take over again, and could not say so any more with the default
// NotifyAccess=main if it had moved MAINPID= away before. So all that systemd
// hears of an upgrade it hears from old, and new is silent until old has told
// it over the control channel that it is the main process now, or is dead.
//
//	old  RELOADING=1, MONOTONIC_USEC=   an upgrade begins
//	old  READY=1, STATUS=               it failed, or was rolled back
//	old  MAINPID=, READY=1, STATUS=     it has drained; the very next thing it does is
//	old  BARRIER=1                      to wait until systemd has read that
//	old  tells new, closes Done, exits
//
// If old is killed before that, systemd ends the service and starts it again,
// unless the unit has a PIDFile=: then it looks there first, and goes on with new.
// A unit with ExecReload= must not have one, since systemd reads it also when
// ExecReload= ends, which is somewhere in the middle of an upgrade.
//
// github.com/coreos/go-systemd/v22 is not used: it has no BARRIER=1 and nothing
// to build it with, and its watchdog looks for a variable with the pid of the
// first generation.

// notifyTimeout limits each write, and the wait for systemd to have read.
const notifyTimeout = 5 * time.Second

// Watchdog gives a check that is called each time before systemd's watchdog is
// told that this process is well (WATCHDOG=1, where the unit has WatchdogSec=).
// An error, or a panic, is logged, and systemd is not told. Its context ends when the next
// call is due. Default: no check; systemd is told as long as the goroutine that
// carries out upgrades and stops is not stuck.
func Watchdog(check func(context.Context) error) Option {
	return func(o *options) error { o.watchdog = check; return nil }
}

// A serviceManager is where notifications go, and what is wanted of them. It
// goes into the manifest: WATCHDOG_PID would name the process before, and the
// program may have changed its environment.
type serviceManager struct {
	Socket   string
	Watchdog time.Duration // 0: none
	// Parent says that the service manager is our parent.
	Parent bool
}

// takeServiceManager reads the environment of a first process. NOTIFY_SOCKET
// stays there, as other programs for systemd leave it: systemd knows from whom a
// message comes. WATCHDOG_USEC and WATCHDOG_PID, which would be wrong from the
// next generation on, are taken away.
func takeServiceManager() (m *serviceManager, err error) {
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
	m = &serviceManager{Socket: socket, Parent: os.Getppid() == 1}
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

// A notifier speaks to systemd. A nil one says nothing. Its methods are called
// by the goroutine that owns the Upgrader's state; one other writes, so that a
// systemd that does not read holds nothing up.
type notifier struct {
	serviceManager
	log  *slog.Logger
	jobs chan func()

	main     bool // systemd takes this process for the main one
	stopping bool // it was told so
	broken   bool // owned by the writer: the last write has failed
}

// newNotifier gives nil if there is no systemd that wants to hear anything.
func newNotifier(m *serviceManager, log *slog.Logger, main bool) *notifier {
	if m == nil {
		return nil
	}
	n := &notifier{serviceManager: *m, log: log, main: main, jobs: make(chan func(), 64)}
	go func() {
		for job := range n.jobs {
			job()
		}
	}()
	return n
}

// manager is what the next process needs to know.
func (n *notifier) manager() *serviceManager {
	if n == nil {
		return nil
	}
	return &n.serviceManager
}

// isParent says whether the next process is to be the service manager's child.
func (n *notifier) isParent() bool { return n != nil && n.main && n.Parent }

// say tells systemd, if it listens to this process.
func (n *notifier) say(lines ...string) {
	if n == nil || !n.main {
		return
	}
	select {
	case n.jobs <- func() { n.write(strings.Join(lines, "\n"), nil) }:
	default: // systemd has not read for long, and what counts is said again
	}
}

// reloading: an upgrade begins.
func (n *notifier) reloading(status string) {
	n.say("RELOADING=1", fmt.Sprintf("MONOTONIC_USEC=%d", monotonicUsec()), statusLine(status))
}

// ready: this process serves, or serves on.
func (n *notifier) ready(status string) { n.say("READY=1", statusLine(status)) }

func (n *notifier) status(status string) { n.say(statusLine(status)) }

// stop: the service ends.
func (n *notifier) stop(status string) {
	if n != nil && !n.stopping {
		n.stopping = true
		n.say("STOPPING=1", statusLine(status))
	}
}

// moveMain gives what makes pid the main process, and returns when systemd knows;
// nil if it does not listen. Nothing that this process says is heard any more.
func (n *notifier) moveMain(pid int, status string) (tell func()) {
	if n == nil || !n.main {
		return nil
	}
	n.main = false
	return func() {
		n.do(func() { n.sayMain(pid, status) })
	}
}

// sayMain is moveMain, in the goroutine that writes.
func (n *notifier) sayMain(pid int, status string) {
	err := n.write(strings.Join([]string{fmt.Sprintf("MAINPID=%d", pid), "READY=1", "WATCHDOG=1", statusLine(status)}, "\n"), nil)
	if err == nil {
		err = n.barrier()
	}
	if err != nil {
		n.log.Warn("grace: systemd was not told the new main process", "new", pid, "err", err, "do", "see whether systemd starts the service again now; nothing else is wrong")
	}
}

// flush returns when what was said is written. Like what moveMain gives, it is not
// for the goroutine that owns the state.
func (n *notifier) flush() {
	if n != nil {
		n.do(func() {})
	}
}

// close ends the notifier; what was said is still written.
func (n *notifier) close() {
	if n != nil {
		n.main = false
		close(n.jobs)
	}
}

// do waits for job and what was queued before it, within limits.
func (n *notifier) do(job func()) {
	done := make(chan struct{})
	limit := time.NewTimer(2 * notifyTimeout)
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

// write sends one datagram, with a descriptor if file is not nil. A failure is
// logged, once for several in a row.
func (n *notifier) write(text string, file *os.File) error {
	err := n.send(text, file)
	if err != nil && !n.broken {
		n.log.Warn("grace: systemd can't be told", "socket", n.Socket, "err", err)
	}
	n.broken = err != nil
	return err
}

func (n *notifier) send(text string, file *os.File) error {
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: n.Socket, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetWriteDeadline(time.Now().Add(notifyTimeout))
	if file != nil {
		return writeWithFile(conn, text, file)
	}
	_, err = conn.Write([]byte(text))
	return err
}

// barrier returns when systemd has read all that was written before: it closes
// the descriptor that it gets when it comes to this message.
func (n *notifier) barrier() error {
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
	r.SetReadDeadline(time.Now().Add(notifyTimeout))
	_, err = r.Read(make([]byte, 1))
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("no answer to BARRIER=1 within %v", notifyTimeout)
	}
	return nil
}

// statusLine is what systemctl status shows: one line.
func statusLine(text string) string {
	return "STATUS=" + strings.Join(strings.Fields(text), " ")
}
