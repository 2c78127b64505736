//go:build !unix

package grace

import (
	"context"
	"errors"
	"net"
	"os"
	"syscall"

	"github.com/julofinance/grace/v3/internal/fd"
	"github.com/julofinance/grace/v3/internal/manifest"
	"github.com/julofinance/grace/v3/internal/proc"
)

// Where sockets can't be handed over, everything else works as usual.

const supported = false

var (
	upgradeSignals = []os.Signal(nil)
	stopSignals    = []os.Signal{syscall.SIGTERM, os.Interrupt}
	uncatchable    = []os.Signal{os.Kill}
	pipeSignals    = []os.Signal(nil)

	errBrokenPipe = errors.New("broken pipe")
	errConnReset  = errors.New("connection reset")
	errAddrInUse  = errors.New("address already in use")
	errTextBusy   = errors.New("text file busy")
	errReadOnly   = errors.New("read-only file system")
)

var errShort []error

type handover struct{ version, first, count int }

var (
	inherited    *handover
	inheritedErr error
	theMaster    *master
	theMasterErr error
)

func (h *handover) open() (*net.UnixConn, *os.File, error) { return nil, nil, ErrNotSupported }

func startProcess(context.Context, command, int, int, []int) (proc.Process, error) {
	return nil, ErrNotSupported
}

func fileID(string) (dev, ino uint64, err error) { return 0, 0, ErrNotSupported }

// readable: the queue can't be looked at, so it counts as empty.
func readable(*socket) bool { return false }

func describe(k manifest.Kind, network, addr string, _ any) manifest.Entry {
	return manifest.Entry{Kind: k, Network: network, Addr: addr}
}

func openPath[T any](_, _ string, open func() (T, error)) (T, error) { return open() }

func sayWho(*socket) {}

type socketFile struct{}

func (sock *socket) lost() bool       { return false }
func (sock *socket) look()            {}
func (sock *socket) refile()          {}
func (sock *socket) hide()            {}
func (sock *socket) show()            {}
func (sock *socket) unlink()          {}
func (sock *socket) forget()          {}
func (sock *socket) listens() bool    { return true }
func (sock *socket) isShutDown() bool { return false }
func (sock *socket) listenNow() error { return nil }

func openLate(lc net.ListenConfig, network, addr string) (fd.Listener, net.Listener, error) {
	l, err := lc.Listen(context.Background(), network, addr)
	return nil, l, err
}
