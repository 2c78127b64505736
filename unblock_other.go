//go:build !linux

package grace

// freeAccept is for Linux: see there.
func (l *listener) freeAccept() {}
