//go:build unix

package master

import (
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// firstActivated is the descriptor that systemd begins with.
const firstActivated = 3

// systemdMaster: socket activation, see sd_listen_fds(3). The first process is
// given the sockets; at an upgrade they are handed over like all others, while
// systemd keeps its own copies.
//
// github.com/coreos/go-systemd/v22/activation is not used: where a variable is
// wrong it gives no sockets and no error, and the server would open its own.
func systemdMaster() (*Master, error) {
	pid, hasPid := takeVariable("LISTEN_PID")
	count, hasCount := takeVariable("LISTEN_FDS")
	names, _ := takeVariable("LISTEN_FDNAMES")
	takeVariable("LISTEN_PIDFDID")
	if !hasPid && !hasCount {
		return nil, nil
	}
	n, err := strconv.Atoi(count)
	if err != nil || n < 0 {
		return nil, badVariable("LISTEN_FDS", count, "not a number of descriptors")
	}
	p, err := strconv.Atoi(pid)
	if err != nil || p < 1 {
		return nil, badVariable("LISTEN_PID", pid, "not a process id")
	}
	if p != os.Getpid() {
		return nil, badVariable("LISTEN_PID", pid, "the sockets are for another process than this one, %d; a script before it must end in exec", os.Getpid())
	}
	if n == 0 {
		return nil, nil
	}
	m := &Master{Name: "systemd", Variable: "LISTEN_FDS"}
	given := strings.Split(names, ":")
	if names != "" && len(given) != n {
		return nil, badVariable("LISTEN_FDNAMES", names, "%d names for LISTEN_FDS=%d", len(given), n)
	}
	for i := range n {
		s, err := inspectSocket(firstActivated + i)
		if err != nil {
			return nil, badVariable("LISTEN_FDS", count, "%v", err)
		}
		// systemd makes them blocking at each start of the service.
		if err := unix.SetNonblock(s.FD, true); err != nil {
			return nil, badVariable("LISTEN_FDS", count, "descriptor %d: %v", s.FD, err)
		}
		if names != "" {
			s.Name = given[i]
		}
		m.Sockets = append(m.Sockets, s)
	}
	return m, nil
}
