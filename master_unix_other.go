//go:build unix && !linux

package grace

import (
	"os"
	"time"
)

// Without Linux's /proc only the parent itself is known: a wrapper script must
// end in exec of the server.

func ancestors() []int { return []int{os.Getppid()} }

func whoSet(string, string) int { return os.Getppid() }

func holds(int, uint64) error { return nil }

// whenGone calls f when the process pid, our parent, has ended.
func whenGone(pid int, f func()) {
	go func() {
		for os.Getppid() == pid {
			time.Sleep(500 * time.Millisecond)
		}
		f()
	}()
}
