//go:build unix && !linux

package grace

// pollHungUp is what poll(2) says of a listener that was shut down, besides POLLHUP.
const pollHungUp = 0
