//go:build !linux

package sockets

// A queue is what only Linux tells of.
type queue struct {
	network, addr string
	length        uint32
}

func fullQueue(*Socket) *queue { return nil }
func (q *queue) stands() bool  { return false }
func (q *queue) close()        {}
