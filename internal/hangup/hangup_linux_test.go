//go:build linux && (amd64 || arm64)

package hangup

import (
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"testing"
)

// hangUp sends SIGHUP to the thread that calls it: it has arrived when it returns.
func hangUp(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := syscall.Tgkill(os.Getpid(), syscall.Gettid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
}

func TestSwallow(t *testing.T) {
	// Whatever was ignored: the runtime's handler is there again.
	t.Cleanup(func() { signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP) })
	Swallow()
	if Restore() {
		t.Error("a signal has come that nobody has sent")
	}
	Swallow()
	Swallow()
	c := make(chan os.Signal, 1)
	hangUp(t) // its default action would end the test
	signal.Notify(c, syscall.SIGHUP)
	hangUp(t)
	if !Restore() {
		t.Error("the signal has not come")
	}
	if Restore() {
		t.Error("it has come twice")
	}
	hangUp(t)
	if s := <-c; s != syscall.SIGHUP {
		t.Errorf("got %v", s)
	}
	select {
	case <-c:
		t.Error("what was swallowed has come as well")
	default:
	}
	// What the program wants counts.
	Swallow()
	signal.Ignore(syscall.SIGHUP)
	hangUp(t)
	Restore()
	hangUp(t)
	var now action
	if sigaction(nil, &now); now.handler != ignored {
		t.Errorf("the handler is %#x; the program ignores the signal", now.handler)
	}
	Swallow()
	if sigaction(nil, &now); now.handler != ignored {
		t.Errorf("the handler is %#x; the signal is ignored", now.handler)
	}
}
