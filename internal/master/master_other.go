//go:build !unix

package master

var (
	given    *Master
	givenErr error
)
