//go:build unix

package master

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/julofinance/grace/v3/internal/hint"
	"github.com/julofinance/grace/v3/internal/manifest"
	"github.com/julofinance/grace/v3/internal/proc"
	"github.com/julofinance/grace/v3/internal/sockets"
	"golang.org/x/sys/unix"
)

// given is looked for before any init function runs, like the hand-over.
var given, givenErr = takeMaster()

// masters are the known ones, in the order in which they are looked for. Each
// takes its variables out of the environment, marks its descriptors
// close-on-exec, and gives nil if it is not there.
var masters = []func() (*Master, error){
	startServerMaster,
	einhornMaster,
	socketmasterMaster,
	systemdMaster,
}

// takeMaster gives the first of masters that is there. The variables of the others
// are taken away all the same.
func takeMaster() (found *Master, err error) {
	for _, look := range masters {
		m, lerr := look()
		if found == nil && err == nil {
			found, err = m, lerr
		}
	}
	return found, err
}

// badVariable is an ErrMaster that names the variable.
func badVariable(variable, value, format string, args ...any) error {
	return fmt.Errorf("grace: %w: %s=%q: %s", sockets.ErrMaster, variable, value, fmt.Sprintf(format, args...))
}

// takeVariable takes a variable out of the environment.
func takeVariable(name string) (value string, ok bool) {
	value, ok = os.LookupEnv(name)
	os.Unsetenv(name)
	return value, ok
}

// takeSocket looks at a descriptor that a master claims to have passed, and marks
// it close-on-exec; none may be in seen. The error tells what is wrong with it,
// without the variable.
func takeSocket(number string, seen map[int]bool) (sockets.Passed, error) {
	fd, err := strconv.Atoi(strings.TrimSpace(number))
	if err != nil {
		return sockets.Passed{}, fmt.Errorf("%q is not a number", number)
	}
	if seen[fd] {
		return sockets.Passed{}, fmt.Errorf("descriptor %d is named twice", fd)
	}
	seen[fd] = true
	return inspectSocket(fd)
}

func inspectSocket(fd int) (s sockets.Passed, err error) {
	if fd < 0 {
		return s, fmt.Errorf("descriptor %d is below zero", fd)
	}
	// A descriptor that came through exec is not close-on-exec; one that is was
	// opened by this process, and the master's is closed.
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	if err != nil || flags&unix.FD_CLOEXEC != 0 {
		return s, fmt.Errorf("descriptor %d is closed", fd)
	}
	typ, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return s, fmt.Errorf("descriptor %d is not a socket", fd)
	}
	unix.CloseOnExec(fd)
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return s, fmt.Errorf("descriptor %d: %w", fd, os.NewSyscallError("getsockname", err))
	}
	s.FD = fd
	s.Kind, s.Master = manifest.Listener, true
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		s.Network, s.Bound = "tcp", netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port)).String()
	case *unix.SockaddrInet6:
		ip := netip.AddrFrom16(sa.Addr)
		if sa.ZoneId != 0 {
			if i, err := net.InterfaceByIndex(int(sa.ZoneId)); err == nil {
				ip = ip.WithZone(i.Name)
			}
		}
		s.Network, s.Bound = "tcp", netip.AddrPortFrom(ip, uint16(sa.Port)).String()
		v, err := unix.GetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY)
		s.V6Only = err == nil && v == 1
	case *unix.SockaddrUnix:
		s.Network, s.Bound = "unix", sa.Name
	default:
		return s, fmt.Errorf("descriptor %d is a socket of an unknown family", fd)
	}
	s.Addr = s.Bound
	switch typ {
	case unix.SOCK_STREAM, unix.SOCK_SEQPACKET:
		if typ == unix.SOCK_SEQPACKET {
			s.Network = "unixpacket"
		}
		if on, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err != nil || on == 0 {
			return s, fmt.Errorf("descriptor %d is a socket that does not listen", fd)
		}
	case unix.SOCK_DGRAM:
		s.Kind = manifest.Packet
		if s.Network == "tcp" {
			s.Network = "udp"
		} else {
			s.Network = "unixgram"
		}
	default:
		return s, fmt.Errorf("descriptor %d is a socket of type %d", fd, typ)
	}
	return s, nil
}

// takeSockets takes several, none of them twice.
func takeSockets(variable, value string, numbers []string) (sockets []sockets.Passed, err error) {
	seen := map[int]bool{}
	for _, n := range numbers {
		s, err := takeSocket(n, seen)
		if err != nil {
			return nil, badVariable(variable, value, "%v", err)
		}
		sockets = append(sockets, s)
	}
	return sockets, nil
}

// onlyListeners refuses packet sockets, which this master does not pass.
func onlyListeners(variable, value string, sockets []sockets.Passed) error {
	for _, s := range sockets {
		if s.Kind != manifest.Listener {
			return badVariable(variable, value, "descriptor %d is a socket that does not listen", s.FD)
		}
	}
	return nil
}

// findMaster finds out which process the master is: the pid in the variable pidVar,
// or, without that, the process that has set m.Variable to value.
func (m *Master) findMaster(pidVar, value string) error {
	pidText, ok := takeVariable(pidVar)
	if pidVar == "" || !ok {
		m.Pid = proc.SetBy(m.Variable, value)
	} else {
		pid, err := strconv.Atoi(pidText)
		if err != nil || pid < 1 {
			return badVariable(pidVar, pidText, "it is not a process id")
		}
		if !slices.Contains(proc.Ancestors(), pid) {
			return badVariable(pidVar, pidText, "that process has not started this one, whose parent is %d", os.Getppid())
		}
		m.Pid = pid
	}
	m.child = os.Getpid()
	if parent := os.Getppid(); parent != m.Pid {
		m.Wrapper = parent
		for _, pid := range proc.Ancestors() {
			if pid == m.Pid {
				break
			}
			m.child = pid
		}
	}
	return nil
}

// Signal sends sig to the master, if it can be proven that its pid is still the
// Master's: it is an ancestor of this process, and holds the socket that it has
// passed. Where it has passed none there is no proof, and no signal: the
// variables may be left over from anything. FindProcess pins the process, so that
// the pid can't change hands between the proof and the signal where the system
// has a way for that.
func (m *Master) Signal(sig syscall.Signal) error {
	p, err := os.FindProcess(m.Pid)
	if m.Pid < 1 || err != nil {
		return hint.New(
			fmt.Errorf("the %s that has started this process can't be told", m.Name),
			"send the "+m.Name+" the signal yourself: "+strings.TrimPrefix(unix.SignalName(sig), "SIG"),
		)
	}
	defer p.Release()
	if !slices.Contains(proc.Ancestors(), m.Pid) {
		return hint.New(fmt.Errorf("the %s that has started this process, pid %d, is gone", m.Name, m.Pid), AdviceMasterGone)
	}
	if m.socket == 0 {
		return hint.New(
			fmt.Errorf("pid %d can't be proven to be the %s that has started this process: it has passed no socket", m.Pid, m.Name),
			m.byHand(sig),
		)
	}
	if err := proc.HasSocket(m.Pid, m.socket); err != nil {
		err = fmt.Errorf("pid %d can't be proven to be the %s that has started this process: %w", m.Pid, m.Name, err)
		return m.mayNotSignal(sig, err)
	}
	if err := p.Signal(sig); err != nil {
		return m.mayNotSignal(sig, fmt.Errorf("%v to the %s, pid %d: %w", sig, m.Name, m.Pid, err))
	}
	return nil
}

// mayNotSignal gives err advice if it means that the master is another user's:
// root's, mostly, which has started us as a user with fewer rights.
func (m *Master) mayNotSignal(sig syscall.Signal, err error) error {
	if !errors.Is(err, fs.ErrPermission) {
		return err
	}
	owner := "another user's"
	if st, serr := os.Stat(fmt.Sprintf("/proc/%d", m.Pid)); serr == nil {
		if sys, ok := st.Sys().(*syscall.Stat_t); ok {
			owner = fmt.Sprintf("of uid %d", sys.Uid)
		}
	}
	return hint.New(
		fmt.Errorf("the %s is a process %s, and this one is of uid %d: %w", m.Name, owner, os.Geteuid(), err),
		"run the "+m.Name+" as the user of this process; or, as its user, "+m.byHand(sig),
	)
}

// byHand is how an operator does it.
func (m *Master) byHand(sig syscall.Signal) string {
	return fmt.Sprintf("send the %s the signal yourself: kill -%s %d", m.Name, strings.TrimPrefix(unix.SignalName(sig), "SIG"), m.Pid)
}

// remember keeps what the proof of the master needs.
func (m *Master) remember() {
	if len(m.Sockets) > 0 {
		var st unix.Stat_t
		if unix.Fstat(m.Sockets[0].FD, &st) == nil {
			m.socket = uint64(st.Ino)
		}
	}
}
