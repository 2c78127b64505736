//go:build !unix

package grace

// free is for unix: see there.
func (t *track) free() {}
