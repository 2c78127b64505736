// Package spawn starts a process without holding up the one that starts it.
//
// The standard library forks as vfork(2) does: the thread that forks is
// suspended by the kernel until the new process has executed its program, and
// the Go runtime does not know. A garbage collection that begins meanwhile waits
// for that thread, and everything else waits for the collection. Where execve(2)
// takes its time (a cold disk, a network file system, a virus scanner), a server
// that starts a process stands still.
//
// Here the new process shares the memory of the old one until it has executed
// its program, but nothing waits for it. So it must not run a line of Go: it
// carries out a list of system calls that was written before, in a few lines of
// assembly, with every signal blocked until none is handled any more. Whether
// it succeeded is read from a pipe that closes on exec, like any other.
//
// The package imports nothing that has an init function, so that its own
// variables are set before any other package can have changed a limit: Go
// raises that of open files when package syscall is initialised.
package spawn
