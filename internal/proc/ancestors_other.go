//go:build unix && !linux

package proc

import (
	"os"
	"time"
)

// Without Linux's /proc only the parent itself is known: a wrapper script must
// end in exec of the server.

// Ancestors is the parent of this process.
func Ancestors() []int { return []int{os.Getppid()} }

// SetBy is the parent of this process.
func SetBy(string, string) int { return os.Getppid() }

// HasSocket can't look, and returns nil.
func HasSocket(int, uint64) error { return nil }

// WhenGone calls f, in a goroutine, when the process pid, this one's parent, has ended.
func WhenGone(pid int, f func()) {
	go func() {
		for os.Getppid() == pid {
			time.Sleep(500 * time.Millisecond)
		}
		f()
	}()
}
