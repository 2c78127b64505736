package sockets

import "errors"

// The errors of this package. The package grace has names of its own for them.
var (
	ErrStopped  = errors.New("this process is stopping")
	ErrMaster   = errors.New("a variable of the program that has started this one can't be trusted")
	ErrAnswered = errors.New("another process answers on this path")
	ErrMove     = errors.New("the connection is to be moved to the new process: call grace.Move")
	ErrNotMoved = errors.New("the connection can't be moved and stays in this process")
)
