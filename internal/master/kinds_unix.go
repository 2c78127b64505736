//go:build unix

package master

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/julofinance/grace/v3/internal/fd"
	"github.com/julofinance/grace/v3/internal/manifest"
	"github.com/julofinance/grace/v3/internal/sockets"
	"golang.org/x/sys/unix"
)

// socketmasterMaster: EINHORN_FDS=3, the original way of this library. The
// socket is used whatever address the program asks for. SOCKETMASTER_PID is
// there where the master waits for SIGUSR1; to any other that signal is an
// order to restart itself, and is never sent.
func socketmasterMaster() (*Master, error) {
	const variable, notify = "EINHORN_FDS", "SOCKETMASTER_PID"
	value, ok := takeVariable(variable)
	_, waits := os.LookupEnv(notify)
	defer os.Unsetenv(notify)
	if !ok || value == "" {
		return nil, nil
	}
	m := &Master{Name: "socketmaster", Variable: variable, Siblings: true, AnyAddr: true}
	var err error
	if m.Sockets, err = takeSockets(variable, value, []string{value}); err != nil {
		return nil, err
	}
	if err := onlyListeners(variable, value, m.Sockets); err != nil {
		return nil, err
	}
	m.remember()
	if err := m.findMaster(notify, value); err != nil {
		return nil, err
	}
	m.Upgrade = func() error { return m.Signal(syscall.SIGHUP) }
	if waits {
		m.Ready = func() error { return m.Signal(syscall.SIGUSR1) }
	}
	return m, nil
}

// startServerMaster: SERVER_STARTER_PORT="8080=3;127.0.0.1:81=4;/a/path=5".
func startServerMaster() (*Master, error) {
	const variable = "SERVER_STARTER_PORT"
	value, ok := takeVariable(variable)
	if !ok {
		return nil, nil
	}
	m := &Master{Name: "start_server", Variable: variable, Siblings: true}
	var names, numbers []string
	for _, part := range strings.FieldsFunc(value, func(r rune) bool { return r == ';' }) {
		i := strings.LastIndexByte(part, '=')
		if i < 0 {
			return nil, badVariable(variable, value, "%q is not addr=descriptor", part)
		}
		names, numbers = append(names, part[:i]), append(numbers, part[i+1:])
	}
	var err error
	if m.Sockets, err = takeSockets(variable, value, numbers); err != nil {
		return nil, err
	}
	for i := range m.Sockets {
		s := &m.Sockets[i]
		if !isBoundTo(s.Entry, names[i]) {
			return nil, badVariable(variable, value, "descriptor %d is not bound to %s but to %s", s.FD, names[i], s.Bound)
		}
		s.Name = names[i]
	}
	m.remember()
	if err := m.findMaster("", value); err != nil {
		return nil, err
	}
	m.Upgrade = func() error { return m.Signal(syscall.SIGHUP) }
	return m, nil
}

// isBoundTo compares what start_server tells with what the kernel tells: a path,
// or a port. (The host may be a name.)
func isBoundTo(e manifest.Entry, name string) bool {
	if strings.HasPrefix(e.Network, "unix") {
		return e.Bound == name
	}
	_, bound, err := net.SplitHostPort(e.Bound)
	return err == nil && bound == name[strings.LastIndexByte(name, ':')+1:]
}

// einhornMaster: EINHORN_FD_COUNT=2, EINHORN_FD_0=3, EINHORN_FD_1=4; an old one
// has EINHORN_FDS="3 4" only.
func einhornMaster() (*Master, error) {
	const variable, old, pid = "EINHORN_FD_COUNT", "EINHORN_FDS", "EINHORN_MASTER_PID"
	count, isNew := takeVariable(variable)
	fds := os.Getenv(old)
	_, told := os.LookupEnv(pid)
	path, _ := takeVariable("EINHORN_SOCK_PATH")
	sockFD, hasSockFD := takeVariable("EINHORN_SOCK_FD")
	given := takeNumbered("EINHORN_FD_")
	if !isNew && !told && len(strings.Fields(fds)) < 2 {
		return nil, nil // socketmaster's, or none
	}
	os.Unsetenv(old)
	defer os.Unsetenv(pid)
	// The master's USR2 is its request to drain.
	m := &Master{Name: "einhorn", Variable: variable, Siblings: true, DrainSignals: []os.Signal{syscall.SIGUSR2}}
	var err error
	if isNew {
		m.Sockets, err = einhornSockets(variable, count, given)
	} else {
		m.Variable, count = old, fds
		m.Sockets, err = takeSockets(old, fds, strings.Fields(fds))
	}
	if err == nil {
		err = onlyListeners(m.Variable, count, m.Sockets)
	}
	if err != nil {
		return nil, err
	}
	m.remember()
	if err := m.findMaster(pid, count); err != nil {
		return nil, err
	}
	m.Upgrade = func() error { return m.Signal(syscall.SIGHUP) }
	commands, ferr := -1, error(nil)
	if hasSockFD {
		if commands, ferr = takeCommandSocket(sockFD); ferr != nil && path == "" {
			return nil, badVariable("EINHORN_SOCK_FD", sockFD, "%v", ferr)
		}
	}
	// einhorn -g claims to pass the socket, but since Ruby 2.0 descriptors are
	// closed on exec: the path, which it always gives, works.
	if hasSockFD && ferr == nil {
		m.Ready = func() error {
			c, err := fd.NewUnixConn(commands)
			if err != nil {
				return err
			}
			return m.acknowledge(c)
		}
	} else if path != "" {
		m.Ready = func() error {
			c, err := net.DialTimeout("unix", path, 5*time.Second)
			if err != nil {
				return err
			}
			return m.acknowledge(c)
		}
	}
	return m, nil
}

// einhornSockets are those of EINHORN_FD_0 and so on, as many as were promised.
func einhornSockets(variable, count string, given map[int]string) ([]sockets.Passed, error) {
	n, err := strconv.Atoi(count)
	if err != nil || n < 0 {
		return nil, badVariable(variable, count, "it is not a number of descriptors")
	}
	if n != len(given) {
		return nil, badVariable(variable, count, "there are %d variables EINHORN_FD_0 and so on", len(given))
	}
	seen := map[int]bool{}
	sockets := []sockets.Passed{}
	for i := range n {
		name := fmt.Sprintf("EINHORN_FD_%d", i)
		number, ok := given[i]
		if !ok {
			return nil, badVariable(variable, count, "there is no %s", name)
		}
		s, err := takeSocket(number, seen)
		if err != nil {
			return nil, badVariable(name, number, "%v", err)
		}
		sockets = append(sockets, s)
	}
	return sockets, nil
}

// takeNumbered takes the variables that begin with prefix and end in a number.
func takeNumbered(prefix string) map[int]string {
	found := map[int]string{}
	for _, kv := range os.Environ() {
		name, value, _ := strings.Cut(kv, "=")
		if rest, ok := strings.CutPrefix(name, prefix); ok {
			if i, err := strconv.Atoi(rest); err == nil {
				found[i] = value
				os.Unsetenv(name)
			}
		}
	}
	return found
}

// takeCommandSocket takes the connected socket on which einhorn hears commands.
func takeCommandSocket(number string) (int, error) {
	fd, err := strconv.Atoi(number)
	if err != nil {
		return -1, fmt.Errorf("%q is not a number", number)
	}
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	if err != nil || flags&unix.FD_CLOEXEC != 0 {
		return -1, fmt.Errorf("descriptor %d is closed", fd)
	}
	if _, err := unix.Getpeername(fd); err != nil {
		return -1, fmt.Errorf("descriptor %d is not a connected socket", fd)
	}
	unix.CloseOnExec(fd)
	return fd, nil
}

// acknowledge tells einhorn that this worker is ready, and closes c.
func (m *Master) acknowledge(c net.Conn) error {
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	ack, err := json.Marshal(struct {
		Command string `json:"command"`
		Pid     int    `json:"pid"`
	}{"worker:ack", m.child})
	if err != nil {
		return err
	}
	_, err = c.Write(append(ack, '\n'))
	return err
}
