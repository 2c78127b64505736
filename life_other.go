//go:build unix && !linux

package grace

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// parentLife is that of the old process, whose end gives us another parent.
func parentLife(_ *net.UnixConn, pid int) lifeline { return &life{pid: pid, pidfd: -1, parent: true} }

func startForked(path string, argv []string, attr *syscall.ProcAttr) (*life, error) {
	pid, _, err := syscall.StartProcess(path, argv, attr)
	if err != nil {
		return nil, err
	}
	return &life{pid: pid, pidfd: -1}, nil
}

func pidfdOver(int) bool         { return false }
func awaitPidfd(int)             {}
func killPidfd(int) error        { return unix.ENOSYS }
func startOf(int) (uint64, bool) { return 0, false }
func onlyANumber(int) bool       { return false }
