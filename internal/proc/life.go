package proc

import "time"

// The end of a process is proven, never guessed. A channel that broke proves nothing: the
// process at its other end may be out of memory for a moment. An error of wait proves
// nothing: wait may be forbidden (seccomp), or the program reaps all its children itself.
// The proofs are a pidfd, which names one process for ever; a wait that succeeds; for a
// parent, that this process has another parent now; or, without a pidfd, that no process
// with this pid was started when that one was.

// A Life tells of the end of another process. Its methods may be called from several
// goroutines at once.
type Life interface {
	// Over reports whether the process is proven to have ended.
	Over() bool
	// Await waits until the process is proven to have ended, and returns true; or until
	// stop is closed, and returns false.
	Await(stop <-chan struct{}) bool
	// Close gives up what the proof takes.
	Close()
}

// pollLife is Life.Await where nothing but over can tell.
func pollLife(over func() bool, stop <-chan struct{}) bool {
	for pause := time.Millisecond; !over(); pause = min(2*pause, 100*time.Millisecond) {
		select {
		case <-stop:
			return false
		case <-time.After(pause):
		}
	}
	return true
}
