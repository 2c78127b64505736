// Package hangup keeps SIGHUP from ending a process before the program looks after
// it, at the cost of a system call.
//
// [os/signal] can do that too, but the first signal that it is asked for makes the
// runtime start two threads, which the caller waits for: a tenth of the time in which
// a process starts. The action SIG_IGN would be as cheap, but what the program starts
// inherits it (signal(7)); a handler it does not.
package hangup
