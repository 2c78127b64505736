//go:build linux && (amd64 || arm64)

package hangup

import (
	"sync"
	"syscall"
	"unsafe"
)

// Supported reports whether Swallow can do anything here.
const Supported = true

// An action is the kernel's struct sigaction.
type action struct{ handler, flags, restorer, mask uintptr }

const ignored = 1 // SIG_IGN

var (
	mu       sync.Mutex // guards the two below
	runtimes action     // that of Go's runtime
	swallows bool

	// seen is set by the handler, which is assembly.
	seen byte
)

// handlerPC gives the address of the handler.
func handlerPC() uintptr

// Swallow lets SIGHUP do nothing until Restore, unless it is ignored. Nor does
// os/signal hear of it until then.
func Swallow() {
	mu.Lock()
	defer mu.Unlock()
	if swallows || sigaction(nil, &runtimes) != 0 || runtimes.handler <= ignored {
		return
	}
	ours := runtimes // its flags and its way back from a handler are right for ours too
	ours.handler = handlerPC()
	swallows = sigaction(&ours, nil) == 0
}

// Restore ends that, and reports whether a signal has come. Where the program has
// called signal.Ignore meanwhile it stays so.
func Restore() (came bool) {
	mu.Lock()
	defer mu.Unlock()
	var now action
	if !swallows {
		return false
	}
	swallows = false
	if sigaction(nil, &now) == 0 && now.handler == handlerPC() {
		sigaction(&runtimes, nil)
	}
	came, seen = seen != 0, 0
	return came
}

func sigaction(set, old *action) syscall.Errno {
	_, _, errno := syscall.RawSyscall6(syscall.SYS_RT_SIGACTION, uintptr(syscall.SIGHUP),
		uintptr(unsafe.Pointer(set)), uintptr(unsafe.Pointer(old)), 8, 0, 0)
	return errno
}
