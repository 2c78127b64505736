//go:build unix && !linux

package proc

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// ParentLife is the life of the old process, whose end gives this process another parent.
func ParentLife(_ *net.UnixConn, pid int) Life { return &life{pid: pid, pidfd: -1, parent: true} }

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
