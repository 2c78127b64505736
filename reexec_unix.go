//go:build unix

package grace

import (
	"cmp"
	"fmt"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

const supported = true

// start starts c with the given descriptors as 3, 4 and so on. Plain numbers
// and syscall.StartProcess are used because os.File.Fd may set a socket to
// blocking, for this process too.
func (c command) start(fds []uintptr) (process, error) {
	files := make([]uintptr, 0, 3+len(fds))
	for fd := uintptr(0); fd < 3; fd++ {
		files = append(files, standardStream(fd))
	}
	files = append(files, fds...)
	if c.sibling {
		return startSibling(c, files)
	}
	l, err := startChild(c.path, c.argv, &syscall.ProcAttr{Dir: c.dir, Env: c.env, Files: files})
	if err != nil {
		return nil, fmt.Errorf("start %s in %s: %w", c.path, c.dir, err)
	}
	p, err := os.FindProcess(l.pid)
	if err != nil {
		l.kill()
		var ws syscall.WaitStatus
		syscall.Wait4(l.pid, &ws, 0, nil)
		l.close()
		return nil, fmt.Errorf("start %s: %w", c.path, err)
	}
	return &child{p, l}, nil
}

// standardStream is fd if it is still what the process was started with: a
// descriptor that Go opened there later is close-on-exec.
func standardStream(fd uintptr) uintptr {
	flags, err := unix.FcntlInt(fd, unix.F_GETFD, 0)
	if err != nil || flags&unix.FD_CLOEXEC != 0 {
		return ^uintptr(0)
	}
	return fd
}

// A handover is what a new process was given.
type handover struct {
	version int
	ready   int // write end of the readiness pipe
	control int
	first   int // of the sockets
	count   int
	parent  int  // of the new process; 0: this one
	opened  bool // the numbers are not ours any more
}

// variable is the value of handoverVariable: for whom it is meant, and which
// number is which. The child's pid can't be known before the fork, so it says
// whose child it is, and which socket the control channel must be.
func (h handover) variable(control int) (string, error) {
	var st unix.Stat_t
	if err := unix.Fstat(control, &st); err != nil {
		return "", os.NewSyscallError("fstat", err)
	}
	return fmt.Sprintf("version=%d,parent=%d,socket=%d,ready=%d,control=%d,first=%d,count=%d",
		h.version, cmp.Or(h.parent, os.Getpid()), uint64(st.Ino), h.ready, h.control, h.first, h.count), nil
}

// inherited is what this process was given, if it was. It is looked for here,
// before any init function of the program, so that nothing that the program
// starts can inherit it.
var inherited, inheritedErr = takeHandover()

// takeHandover takes the variable out of the environment and, if it was meant
// for this process, marks what it names close-on-exec. It is nil otherwise: the
// variable names a parent that isn't ours (and is alive), or a control channel
// that we don't have.
func takeHandover() (*handover, error) {
	v, ok := os.LookupEnv(handoverVariable)
	if !ok {
		return nil, nil
	}
	os.Unsetenv(handoverVariable)
	var h handover
	var parent int
	var socket uint64
	n, _ := fmt.Sscanf(v, "version=%d,parent=%d,socket=%d,ready=%d,control=%d,first=%d,count=%d",
		&h.version, &parent, &socket, &h.ready, &h.control, &h.first, &h.count)
	// Every version begins with the first five.
	if n < 5 || (n < 7 && h.version == protocolVersion) {
		return nil, fmt.Errorf("%s=%q is not understood", handoverVariable, v)
	}
	var st unix.Stat_t
	if err := unix.Fstat(h.control, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFSOCK || uint64(st.Ino) != socket {
		return nil, fmt.Errorf("%s=%q names a control channel that this process does not have", handoverVariable, v)
	}
	// If old died meanwhile, somebody else has adopted us.
	if os.Getppid() != parent && !orphaned(h.control) {
		h.drop()
		return nil, fmt.Errorf("%s=%q was meant for a child of process %d, and this is one of %d", handoverVariable, v, parent, os.Getppid())
	}
	unix.CloseOnExec(h.ready)
	unix.CloseOnExec(h.control)
	for i := range h.count {
		unix.CloseOnExec(h.first + i)
	}
	return &h, nil
}

func (h *handover) open() (*net.UnixConn, *os.File, error) {
	if h.opened {
		return nil, nil, fmt.Errorf("%w: a New before this one has failed, and the old process serves on; end this one", ErrStopped)
	}
	h.opened = true
	conn, err := unixConn(h.control)
	return conn, os.NewFile(uintptr(h.ready), "readiness pipe"), err
}

// drop closes what was meant for another process, and leaked to this one: the
// sockets would outlive their server here. Only what is surely that is closed.
func (h *handover) drop() {
	fds := map[int]uint32{h.ready: unix.S_IFIFO, h.control: unix.S_IFSOCK}
	for i := range h.count {
		fds[h.first+i] = unix.S_IFSOCK
	}
	for fd, kind := range fds {
		var st unix.Stat_t
		if fd > 2 && unix.Fstat(fd, &st) == nil && uint32(st.Mode)&unix.S_IFMT == kind {
			unix.Close(fd)
		}
	}
}

// orphaned says whether the other end of the socket fd is gone, and its manifest
// still there: if it is not, the process that it was for has read it. (A pid
// says less: that of a dead process lives on until somebody reaps it.)
func orphaned(fd int) bool {
	p := []unix.PollFd{{Fd: int32(fd)}}
	for {
		_, err := unix.Poll(p, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil || p[0].Revents&unix.POLLHUP == 0 {
			return false
		}
		n, _, err := unix.Recvfrom(fd, make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
		if err != unix.EINTR {
			return err == nil && n > 0
		}
	}
}
