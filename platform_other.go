//go:build !unix

package grace

import (
	"context"
	"errors"
	"net"
	"os"
	"syscall"

	"github.com/julofinance/grace/v3/internal/proc"
)

// Where sockets can't be handed over, everything else works as usual.

const supported = false

var (
	upgradeSignals = []os.Signal(nil)
	stopSignals    = []os.Signal{syscall.SIGTERM, os.Interrupt}
	uncatchable    = []os.Signal{os.Kill}
	pipeSignals    = []os.Signal(nil)

	errConnReset = errors.New("connection reset")
	errAddrInUse = errors.New("address already in use")
	errTextBusy  = errors.New("text file busy")
	errReadOnly  = errors.New("read-only file system")
)

var errShort []error

type handover struct{ version, first, count int }

var (
	inherited    *handover
	inheritedErr error
)

func (h *handover) open() (*net.UnixConn, *os.File, error) { return nil, nil, ErrNotSupported }

func startProcess(context.Context, command, int, int, []int) (proc.Process, error) {
	return nil, ErrNotSupported
}
