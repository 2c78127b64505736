package grace

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"github.com/julofinance/grace/v3/internal/hint"
	"github.com/julofinance/grace/v3/internal/proc"
)

// A starter is what the environment says about the program that has started
// this process: one that takes the first process for the whole service.
type starter struct {
	// systemd: this process is what a unit has started, ExecStart= itself.
	systemd bool
	// pidFile is the unit's PIDFile=, by which systemd finds the next process.
	pidFile string
	// supervisord: this process is supervisord's child.
	supervisord bool
}

// theStarter is determined before main begins: the program may change its
// environment later.
var theStarter = findStarter()

func findStarter() (s starter) {
	// Since systemd 248. Shells and other programs pass the variable on to what
	// they start, which have other pids.
	s.systemd = os.Getenv("SYSTEMD_EXEC_PID") == strconv.Itoa(os.Getpid())
	if s.systemd {
		s.pidFile = os.Getenv("PIDFILE") // since systemd 242
	}
	const variable = "SUPERVISOR_ENABLED"
	if v, ok := os.LookupEnv(variable); ok {
		s.supervisord = proc.SetBy(variable, v) == os.Getppid() // else a script is between, which knows the PID file
	}
	return s
}

// isService reports whether a supervisor takes this process for the service,
// although it has handed over: a stop that it sends ends the service, however
// late it comes.
func (u *Upgrader) isService() bool {
	if u.notify != nil {
		return u.notify.IsMain()
	}
	return u.parent == nil && (u.sys.starter.systemd || u.sys.starter.supervisord)
}

// wouldEndService returns why the end of this process, with which each upgrade
// ends, would be the end of the new one too.
func (u *Upgrader) wouldEndService() error {
	if os.Getpid() == 1 {
		return &UpgradeError{Reason: ErrNotSupported, Err: errors.New("this process is PID 1, and when it ends the kernel ends everything in its container, the new process too")}
	}
	s := u.sys.starter
	if !s.systemd || u.parent != nil || u.notify != nil {
		return nil
	}
	if s.pidFile != "" && u.pid != nil && sameFile(s.pidFile, u.pid.path) {
		return nil // the way of Type=forking, which systemd goes with other types as well
	}
	return &UpgradeError{Reason: ErrNotSupported, Err: hint.New(
		fmt.Errorf("systemd has started this process without Type=notify (SYSTEMD_EXEC_PID=%d, no NOTIFY_SOCKET), and when it ends systemd takes the service for ended, and ends the new process too", os.Getpid()),
		"set Type=notify in the unit's [Service] section, then systemctl daemon-reload and one restart: see docs/systemd.md",
	)}
}
