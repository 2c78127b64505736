package birth

import "syscall"

// Descriptors are those that the user has passed down, and that mean nothing to
// the library: a lock that flock(1) holds, the descriptor by which a supervisor
// wants to be told that the service is ready. Each later generation knows them
// by the variable.
var Descriptors = descriptors()

func descriptors() []Descriptor {
	if Given.Ours {
		return describe(Given.Kept)
	}
	dir, err := syscall.Open("/proc/self/fd", syscall.O_RDONLY|syscall.O_DIRECTORY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer syscall.Close(dir)
	var fds []int
	buf := make([]byte, 4096)
	for {
		n, err := syscall.ReadDirent(dir, buf)
		if err != nil || n <= 0 {
			return describe(fds)
		}
		_, _, names := syscall.ParseDirent(buf[:n], -1, nil)
		for _, name := range names {
			if fd, ok := number(name); ok && inherited(int(fd)) {
				fds = append(fds, int(fd))
			}
		}
	}
}

// inherited reports whether fd would be passed on at exec.
func inherited(fd int) bool {
	flags, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), syscall.F_GETFD, 0)
	return errno == 0 && flags&syscall.FD_CLOEXEC == 0
}
