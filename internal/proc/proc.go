// Package proc starts processes and proves their end, where package os would stop the world
// of a server that starts a large program, or takes an error of wait for the end of a process.
package proc

import (
	"fmt"
	"os"
)

// A Process is a started one: a child of this process, or of its parent.
type Process interface {
	Pid() int
	// Kill sends SIGKILL. os.ErrProcessDone: it has ended before.
	Kill() error
	// Wait returns when the process has ended and, where possible, was reaped. The error
	// says why the way it ended is not known. It never means that the process lives.
	Wait() (*os.ProcessState, error)
}

// A Program is what a new process is to execute.
type Program struct {
	Path string
	Argv []string
	Env  []string
	Dir  string // empty: that of this process
	// DirAsked says that no other directory than Dir will do: then the error of a start
	// need not tell whether the directory or the binary is at fault.
	DirAsked bool
	// Sibling makes the new process a child of this process's parent. It takes what
	// CanSibling asks for.
	Sibling bool
}

// A DirError says that the new process could not change to its directory.
type DirError struct {
	Dir string
	Err error
}

func (e *DirError) Error() string { return fmt.Sprintf("change to the directory %s: %v", e.Dir, e.Err) }
func (e *DirError) Unwrap() error { return e.Err }

// A StuckError says that a new process had not begun to run when its time was up.
type StuckError struct {
	Path  string
	Doing string
	Pid   int // 0 if there is none
}

func (e *StuckError) Error() string {
	return fmt.Sprintf("%s has waited too long %s: its disk or file system hangs", e.Path, e.Doing)
}
