// Package wait has the two waits of tests: for a condition, and for a channel. Each
// has a limit, and says what was waited for.
package wait

import (
	"runtime"
	"strings"
	"testing"
	"time"
)

// Limit is how long anything is waited for: far longer than it takes on a machine
// that is merely busy.
const Limit = 20 * time.Second

// Until polls cond until it is true: for what does not report its changes.
func Until(t testing.TB, what string, cond func() bool) {
	t.Helper()
	if !Poll(cond) {
		t.Fatalf("waited %v for %s", Limit, what)
	}
}

// Poll is Until for a goroutine that must not end the test: it reports whether cond
// has come true.
func Poll(cond func() bool) bool {
	end := time.After(Limit)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-end:
			return false
		}
	}
	return true
}

// For returns what c gives.
func For[T any](t testing.TB, c <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(Limit):
		t.Fatalf("waited %v for %s", Limit, what)
		panic("not reached")
	}
}

// InSyscall reports whether a goroutine is in a system call below the function.
func InSyscall(function string) bool { return in("syscall", function) }

// ForMutex reports whether a goroutine waits for a mutex below the function.
func ForMutex(function string) bool { return in("sync.Mutex.Lock", function) }

// Runs reports whether there is a goroutine below the function.
func Runs(function string) bool { return in("", function) }

func in(state, function string) bool {
	b := make([]byte, 1<<20)
	n := runtime.Stack(b, true)
	for n == len(b) { // tests may have left many
		b = make([]byte, 2*len(b))
		n = runtime.Stack(b, true)
	}
	for _, stack := range strings.Split(string(b[:n]), "\n\n") {
		head, _, _ := strings.Cut(stack, "\n")
		if strings.Contains(head, "["+state) && strings.Contains(stack, function) {
			return true
		}
	}
	return false
}
