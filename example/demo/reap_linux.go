package main

import "syscall"

// adoptOrphans makes this process the parent of every generation whose own
// parent has ended, so that it can be waited for.
func adoptOrphans() {
	const setChildSubreaper = 36 // prctl(2)
	syscall.Syscall(syscall.SYS_PRCTL, setChildSubreaper, 1, 0)
}
