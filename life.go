package grace

import "time"

// Who is dead is proven, never guessed. A channel that broke proves nothing: the
// process at its other end may be out of memory for a moment. An error of wait
// proves nothing: it may be forbidden (seccomp), or the program reaps all its
// children itself. What proves it is a pidfd, which names one process for ever;
// a wait that succeeds; of a parent, that this process has another one; or, where
// no pidfd is to be had, that there is no process of this pid that was started
// when ours was.

// A lifeline tells of the end of another process.
type lifeline interface {
	// over says whether the process is proven to have ended.
	over() bool
	// await returns when it is, or when stop is closed: then with false.
	await(stop <-chan struct{}) bool
	close()
}

// poll is await for who can only ask.
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
