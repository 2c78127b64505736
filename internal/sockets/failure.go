package sockets

import "errors"

// What can go wrong here, told apart by the names that the package grace gives them.
var (
	ErrStopped  = errors.New("this process is stopping")
	ErrMaster   = errors.New("a variable of the program that has started this one can't be trusted")
	ErrAnswered = errors.New("another process answers on this path")
	ErrMove     = errors.New("the connection is to be moved to the new process: call grace.Move")
	ErrNotMoved = errors.New("the connection can't be moved and stays in this process")
)
