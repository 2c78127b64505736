//go:build unix

package grace

import (
	"cmp"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/julofinance/grace/v3/internal/birth"
	"github.com/julofinance/grace/v3/internal/fd"
	"golang.org/x/sys/unix"
)

const supported = true

// A handover is what a new process was given.
type handover struct {
	version int
	ready   int // write end of the readiness pipe
	control int
	first   int // of the sockets
	count   int
	parent  int    // of the new process; 0: this one
	kept    string // the user's descriptors, with dots between them
	opened  bool   // the numbers are not ours any more
}

// variable is the value of handoverVariable: which process it is meant for, and
// which number is which. The child's pid can't be known before the fork, so the
// value names the child's parent, and the socket that the control channel must
// be.
func (h handover) variable(control int) (string, error) {
	var st unix.Stat_t
	if err := unix.Fstat(control, &st); err != nil {
		return "", os.NewSyscallError("fstat", err)
	}
	v := fmt.Sprintf("version=%d,parent=%d,socket=%d,ready=%d,control=%d,first=%d,count=%d",
		h.version, cmp.Or(h.parent, os.Getpid()), uint64(st.Ino), h.ready, h.control, h.first, h.count)
	if h.kept != "" {
		v += ",keep=" + h.kept
	}
	return v, nil
}

// number gives each of n sockets, the pipe and the channel a number that is none
// of kept, which are the user's.
func (h *handover) number(n int, kept []int) {
	next := 3
	free := func() int {
		for slices.Contains(kept, next) {
			next++
		}
		next++
		return next - 1
	}
	h.ready, h.control = free(), free()
	h.first, h.count = firstSocket(n, next), n
	for _, fd := range slices.Sorted(slices.Values(kept)) {
		if fd >= h.first && fd < h.first+n {
			h.first = fd + 1
		}
	}
	texts := make([]string, len(kept))
	for i, fd := range kept {
		texts[i] = strconv.Itoa(fd)
	}
	h.kept = strings.Join(texts, ".")
}

// passedDown gives the descriptors that the first process was started with, and
// that are the user's: each generation has them under the same numbers. Those
// that the program has closed, or has marked close-on-exec, or made another
// file, are not passed on any more.
func passedDown() (kept []int) {
	for _, d := range birth.Descriptors {
		var st unix.Stat_t
		flags, err := unix.FcntlInt(uintptr(d.FD), unix.F_GETFD, 0)
		if err == nil && flags&unix.FD_CLOEXEC == 0 && unix.Fstat(d.FD, &st) == nil && uint64(st.Dev) == d.Dev && uint64(st.Ino) == d.Ino {
			kept = append(kept, d.FD)
		}
	}
	return kept
}

// inherited is what this process was given, if it was. Package birth has looked
// before any other package could start something that inherits it.
var inherited, inheritedErr = takeHandover(birth.Given)

// takeHandover judges what was given. It is nil if the variable was not meant
// for this process: it names a parent that isn't ours (and is alive), or a
// control channel or sockets that we don't have.
func takeHandover(g birth.Handover) (*handover, error) {
	if !g.Set {
		return nil, nil
	}
	// Every version begins with the first five.
	if g.Fields < 5 || (g.Fields < 7 && g.Version == protocolVersion) {
		return nil, fmt.Errorf("%s=%q is not understood", handoverVariable, g.Value)
	}
	if !g.Ours {
		return nil, fmt.Errorf("%s=%q names a control channel that this process does not have", handoverVariable, g.Value)
	}
	if g.Version == protocolVersion && !g.Whole {
		return nil, fmt.Errorf("%s=%q names sockets that this process does not have", handoverVariable, g.Value)
	}
	h := &handover{version: g.Version, ready: g.Ready, control: g.Control}
	if g.Whole {
		h.first, h.count = g.First, g.Count
	}
	// If the old process died meanwhile, another process has adopted us.
	if os.Getppid() != g.Parent && !orphaned(h.control) {
		h.drop()
		return nil, &strayError{g.Value, g.Parent}
	}
	return h, nil
}

func (h *handover) open() (*net.UnixConn, *os.File, error) {
	if h.opened {
		return nil, nil, fmt.Errorf("%w: a New before this one has failed, and the old process serves on; end this one", ErrStopped)
	}
	h.opened = true
	conn, err := fd.NewUnixConn(h.control)
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

// orphaned reports whether the other end of the socket n is closed, and its manifest still
// there: if it is not, the process that it was for has read it. (A pid tells less: that of
// a dead process is in use until its parent has waited for it.)
func orphaned(n int) bool {
	for fd.IsHungUp(n) {
		got, _, err := unix.Recvfrom(n, make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
		if err != unix.EINTR {
			return err == nil && got > 0
		}
	}
	return false
}
