//go:build unix

package birth

import "syscall"

// Given is what an old process has handed over to this one.
var Given = Take()

// Take takes the variable out of the environment. If this process has the
// control channel that it names, what it names is marked close-on-exec.
func Take() (h Handover) {
	value, set := syscall.Getenv(Variable)
	if !set {
		return h
	}
	syscall.Unsetenv(Variable)
	h = parse(value)
	if h.Fields < 5 || !h.hasControl() {
		return h
	}
	h.Ours = true
	// A count that is not true must cost nothing: the sockets are consecutive,
	// so the last one is there only if the number is.
	var st syscall.Stat_t
	h.Whole = h.Fields == 7 && (h.Count == 0 || h.First <= most-h.Count && syscall.Fstat(h.First+h.Count-1, &st) == nil)
	syscall.CloseOnExec(h.Ready)
	syscall.CloseOnExec(h.Control)
	if h.Whole {
		for i := range h.Count {
			syscall.CloseOnExec(h.First + i)
		}
	}
	return h
}

func (h *Handover) hasControl() bool {
	var st syscall.Stat_t
	return syscall.Fstat(h.Control, &st) == nil && st.Mode&syscall.S_IFMT == syscall.S_IFSOCK && uint64(st.Ino) == h.Socket
}

// describe gives the descriptors of these numbers that are open.
func describe(fds []int) (all []Descriptor) {
	for _, fd := range fds {
		var st syscall.Stat_t
		if fd > 2 && syscall.Fstat(fd, &st) == nil {
			all = append(all, Descriptor{fd, uint64(st.Dev), uint64(st.Ino)})
		}
	}
	return all
}
