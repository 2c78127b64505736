//go:build !unix

package sockets

// free is for unix: see there.
func (t *Track) free() {}
