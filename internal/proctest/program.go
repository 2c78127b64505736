package proctest

import (
	"os"
	"syscall"
)

// WriteProgram is os.WriteFile for a file that is to be executed. No process is
// forked while the file is open for writing: the child would have it open too, up
// to its own execve, and for that long a process that executes the file gets ETXTBSY
// ("text file busy", golang.org/issue/22315).
func WriteProgram(path string, b []byte, mode os.FileMode) error {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	return os.WriteFile(path, b, mode)
}
